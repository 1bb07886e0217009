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
UNMEASURED = """\
**Not measured yet.** No figure in this repository was taken on a GPU. The kernels compile for sm_80, sm_90 and sm_100
with no spills, and their instructions are counted (`docs/performance-log.md`); that is a reason to expect speed, not a
measurement of it.
"""
PROVIDERS = {  # of the JSON rows -> heading
    "eager": "authors' module, eager",
    "eager+compile": "authors' module, compiled",
    "paper-eager": "paper's formula, eager",
    "vectorised": "vectorised, eager",
    "vectorised+compile": "vectorised, compiled",
    "fused[torch]+norm": "ours, authors' form",
    "fused[torch]": "ours, paper's form",
}
GPU_PROVIDERS = {
    "eager": "authors' module, eager",
    "vectorised": "vectorised, eager",
    "vectorised+compile": "vectorised, compiled",
    "fused[triton]+norm": "ours, authors' form",
    "fused[triton]": "ours, paper's form",
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


def gpu_table(result: dict[str, Any]) -> str:
    """One file of `benchmarks/on_gpu.py` as a Markdown table: times in microseconds, shares of the ceiling."""
    lines = [
        f"Median microseconds on the device, cold caches, {result['device']}, torch {result['torch']}, triton "
        f"{result['triton']}, commit {result['commit'][:9]}, {result['date'][:10]}. In brackets how many times faster "
        "than the authors' module; % of what moving the fewest bytes takes in the same run.",
        "",
        "| | | | " + " | ".join(GPU_PROVIDERS.values()) + " |",
        "|---|---|---|" + "---|" * len(GPU_PROVIDERS),
    ]
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in result["rows"]:  # a case that was run twice, with torch.compile and without: the later row
        key = (row["case"], f"{row['dtype']}, {row['layout']}", row["direction"])
        rows.setdefault(key, {})[row["provider"]] = row
    for key, found in rows.items():
        cells = [_gpu_cell(found.get(name)) for name in GPU_PROVIDERS]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _gpu_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["us_p50"] is None:
        return "wrong"
    if row["provider"] == "eager":
        return f"{row['us_p50']:.1f}"
    speedup = "" if row["speedup_vs_eager"] is None else f" ({row['speedup_vs_eager']:.1f}×)"
    share = f", {row['percent_of_ceiling']:.0f} %" if row["provider"].startswith("fused") else ""
    return f"{row['us_p50']:.1f}{speedup}{share}"


def rendered(readme: str) -> str:
    """README's text with its tables made anew, each from the newest file of its kind."""
    files = sorted(RESULTS.glob("*.json"))
    on_cpu = [path for path in files if path.name.startswith("cpu-")]
    on_gpu = [path for path in files if not path.name.startswith("cpu-")]
    readme = _between(readme, "cpu-table", cpu_table(_read(on_cpu[-1])) if on_cpu else "Not measured yet.\n")
    return _between(readme, "gpu-table", gpu_table(_read(on_gpu[-1])) if on_gpu else UNMEASURED)


def _read(path: pathlib.Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _between(readme: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = readme.split(begin)
    return before + begin + text + end + rest.split(end)[1]


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
