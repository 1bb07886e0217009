"""README's tables of figures, made from the files of measurements, never by hand.

python -m benchmarks.published.tables            # rewrites README.md between its markers
python -m benchmarks.published.tables --check    # exits 1 where README.md and the files differ
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from benchmarks import sizes as case_list
from benchmarks.published import plots

ROOT = pathlib.Path(__file__).resolve().parents[2]
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
COMPILED = "vectorised+compile"  # the peer to beat
Row = dict[str, Any]
Group = dict[str, Row]  # the rows of one case, direction, type and memory format, by provider


def groups(result: dict[str, Any]) -> dict[tuple[str, ...], Group]:
    """By case, direction, type and memory format."""
    found: dict[tuple[str, ...], Group] = {}
    for row in result["rows"]:
        key = (row["case"], row["direction"], row["dtype"], row["layout"])
        found.setdefault(key, {})[row["provider"]] = row
    return found


def _taken(result: dict[str, Any]) -> str:
    triton = "" if result["threads"] else f"Triton {result['triton']}, "
    return f"torch {result['torch']}, {triton}commit {result['commit'][:9]}, {result['date'][:10]}"


def cpu_tables(result: dict[str, Any]) -> str:
    """Median milliseconds of all providers at the sizes that have them, and our ratios at every size."""
    found = groups(result)
    detailed = {key: group for key, group in found.items() if "paper-eager" in group or "eager+compile" in group}
    providers = [name for name in PROVIDERS if any(name in group for group in detailed.values())]
    lines = [
        f"Median milliseconds, float32, {result['threads']} threads of an {result['device']}, {_taken(result)}; in "
        "brackets how many times faster than the authors' module in eager mode.",
        "",
        "| | | " + " | ".join(PROVIDERS[name] for name in providers) + " |",
        "|---|---|" + "---|" * len(providers),
    ]
    for (case, direction, *_), group in detailed.items():
        lines.append(_line([case, direction, *(_milliseconds(group.get(name)) for name in providers)]))
    lines += ["", *_ratios(found)]
    return "\n".join(lines) + "\n"


def _milliseconds(row: Row | None) -> str:
    if row is None or row["us_p50"] is None:
        return "–" if row is None else "wrong"
    time = f"{row['us_p50'] / 1000:.2f}"
    return time if row["provider"] == "eager" else f"{time} ({row['speedup_vs_eager']:.1f}×)"


def _ratios(found: dict[tuple[str, ...], Group]) -> list[str]:
    columns = (("forward", "fused[torch]"), ("forward+backward", "fused[torch]"), ("train-norm", "fused[torch]+norm"))
    lines = [
        "Ours at every size, from the same run: milliseconds, how many times faster than the authors' module in eager "
        "mode / than the vectorised form under torch.compile, and the time of a copy (of copies and sums, with "
        "gradients) of the fewest bytes, in percent of ours.",
        "",
        "| | forward | forward+backward | train-norm (authors' form) |",
        "|---|---|---|---|",
    ]
    for case in case_list.by_map({case for case, *_ in found}):
        cells = [_ratio(found.get((case, direction, "float32", "nchw"), {}), name) for direction, name in columns]
        lines.append(_line([case, *cells]))
    return lines


def _ratio(group: Group, name: str, unit: float = 1000, digits: int = 2) -> str:
    """Ours in so many microseconds, against eager, against the compiled peer where it was measured, and the ceiling."""
    row = group.get(name)
    if row is None or row["us_p50"] is None:
        return "–" if row is None else "wrong"
    against = [row["speedup_vs_eager"]]
    peer = group.get(COMPILED)
    if peer is not None and peer["us_p50"] is not None:
        against.append(peer["us_p50"] / row["us_p50"])
    times = " / ".join("–" if value is None else f"{value:.1f}×" for value in against)
    return f"{row['us_p50'] / unit:.{digits}f}: {times}, {row['percent_of_ceiling']:.0f} %"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def gpu_table(result: dict[str, Any], dtype: str = "float16") -> str:
    """Ours in one type, a line for every size and memory format."""
    columns = (
        ("forward", "fused[triton]"), ("backward", "fused[triton]"), ("forward+backward", "fused[triton]"),
        ("train-norm", "fused[triton]+norm"),
    )  # fmt: skip
    lines = [
        f"Ours in {dtype}: median microseconds on the device, cold caches, {result['device']}, {_taken(result)}. Then "
        "how many times faster than the authors' module in eager mode / than the vectorised form under torch.compile, "
        "and the time of moving the fewest bytes, in percent of ours. Host: microseconds of a call at batch 1, without "
        "gradients.",
        "",
        "| | | forward | backward | forward+backward | train-norm (authors' form) | host |",
        "|---|---|---|---|---|---|---|",
    ]
    found = groups(result)
    for case in case_list.by_map({case for case, *_ in found}):
        for layout in ("nchw", "channels_last"):
            here = [found.get((case, direction, dtype, layout), {}) for direction, _ in columns]
            if any(here):
                cells = [_ratio(group, name, unit=1, digits=1) for group, (_, name) in zip(here, columns, strict=True)]
                host = here[0].get("fused[triton]", {}).get("host_us")
                lines.append(_line([case, layout, *cells, "–" if host is None else f"{host:.0f}"]))
    return "\n".join(lines) + "\n"


def rendered(readme: str) -> str:
    """README's text with its tables and pictures made anew, each from the newest file of its kind."""
    files = sorted((_read(path)["date"], path) for path in plots.published(RESULTS))
    on_cpu = [path for _, path in files if path.name.startswith("cpu-")]
    on_gpu = [path for _, path in files if not path.name.startswith("cpu-")]
    cpu = cpu_tables(_read(on_cpu[-1])) + pictures(on_cpu[-1]) if on_cpu else "Not measured yet.\n"
    gpu = gpu_table(_read(on_gpu[-1])) + pictures(on_gpu[-1]) if on_gpu else UNMEASURED
    return _between(_between(readme, "cpu-table", cpu), "gpu-table", gpu)


def pictures(path: pathlib.Path) -> str:
    """Those that plots.py draws of this file, and a word on what it has no figures for."""
    kinds = plots.wanted(_read(path))
    lines = [
        f"![{plots.KINDS[kind].title}]({plots.picture(path, kind).relative_to(ROOT).as_posix()})\n" for kind in kinds
    ]
    if "memory" not in kinds:
        lines.append("Memory was not measured: PyTorch counts it on a GPU only.\n")
    return "\n" + "\n".join(lines)


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
        print("README.md and the measurements agree" if new == readme else "README.md differs from them")
        return int(new != readme)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
