"""README's tables of figures, made from the files of measurements, never by hand.

python benchmarks/tables.py            # rewrites README.md between its markers
python benchmarks/tables.py --check    # exits 1 where README.md and the files differ
"""

import argparse
import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- cpu-table -->\n", "<!-- /cpu-table -->"
PROVIDERS = {  # of the JSON rows -> heading
    "eager": "authors' module, eager",
    "eager+compile": "authors' module, compiled",
    "paper-eager": "paper's formula, eager",
    "vectorised": "vectorised, eager",
    "vectorised+compile": "vectorised, compiled",
    "fused[torch]+norm": "ours, authors' form",
    "fused[torch]": "ours, paper's form",
}


def cpu_table(result: dict[str, Any]) -> str:
    """One file of `ulsam-fused bench --json` as a Markdown table of median milliseconds."""
    rows = result["rows"]
    providers = [name for name in PROVIDERS if any(row["provider"] == name for row in rows)]
    lines = [
        f"Median milliseconds, {result['threads']} threads of an {result['device']}, torch {result['torch']}, "
        f"commit {result['commit'][:9]}, {result['date'][:10]}; in brackets how many times faster than "
        "the authors' module.",
        "",
        "| | | " + " | ".join(PROVIDERS[name] for name in providers) + " |",
        "|---|---|" + "---|" * len(providers),
    ]
    for case, direction in dict.fromkeys((row["case"], row["direction"]) for row in rows):
        cells = []
        for name in providers:
            found = [row for row in rows if (row["case"], row["direction"], row["provider"]) == (case, direction, name)]
            cells.append(_cell(found[0]) if found else "–")
        lines.append(f"| {case} | {direction} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row["us_p50"] is None:
        return "wrong"
    time = f"{row['us_p50'] / 1000:.2f}"
    return time if row["provider"] == "eager" else f"{time} ({row['speedup_vs_eager']:.1f}×)"


def rendered(readme: str) -> str:
    """README's text with its table made anew from the newest CPU file."""
    files = sorted(RESULTS.glob("cpu-*.json"))
    table = cpu_table(json.loads(files[-1].read_text())) if files else "Not measured yet.\n"
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table + END + rest.split(END)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    arguments = parser.parse_args()
    readme = README.read_text()
    new = rendered(readme)
    if arguments.check:
        print(
            "README.md and the measurements agree" if new == readme else "README.md differs: run benchmarks/tables.py"
        )
        return int(new != readme)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
