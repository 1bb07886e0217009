"""Writes the measured figures into README.md and docs/figures.md, between markers, from the files in results/.

python -m benchmarks.published.tables            # writes both pages
python -m benchmarks.published.tables --check    # writes nothing; exits 1 where a page and the files differ
"""

import argparse
import itertools
import os
import pathlib
import sys

from benchmarks import sizes
from benchmarks.published import plots, schema
from ulsam_fused.bench.rows import Result, Row, RowWorkload, read, workload_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FIGURES = ROOT / "docs" / "figures.md"
UNMEASURED = """\
No figure in this repository was taken on a GPU yet. The kernels compile for sm_80, sm_90 and sm_100 with no spills, and
their instructions are counted ([performance log](performance-log.md)). That is a reason to expect speed, not a
measurement of it.
"""
PROVIDERS = {  # of the JSON rows -> heading
    "eager": "authors' module, eager",
    "eager+compile": "authors' module, compiled",
    "paper-eager": "paper's formula, eager",
    "vectorised": "vectorised, eager",
    "vectorised+compile": "vectorised, compiled",
    "vectorised+onnx": "vectorised, ONNX Runtime",
    "fused[torch]+norm": "ours in PyTorch, authors' form",
    "fused[torch]": "ours in PyTorch, paper's form",
    "fused[cpp]+norm": "ours, authors' form",
    "fused[cpp]": "ours, paper's form",
}
OURS = ("fused[triton]", "fused[cpp]", "fused[torch]")  # the first that a file has is what "auto" takes there
USUAL = ("float32", "nchw")
COMPILED = "vectorised+compile"  # the peer to beat
GAINS = {"forward": "runs forward", "train-norm": "trains"}  # direction: the words of README's sentence
Group = dict[str, Row]  # the rows of one case, direction, type and memory format, by provider


def groups(result: Result) -> dict[RowWorkload, Group]:
    """By case, direction, type and memory format."""
    found: dict[RowWorkload, Group] = {}
    for row in result["rows"]:
        found.setdefault(workload_of(row), {})[row["provider"]] = row
    return found


def _taken(result: Result) -> str:
    triton = "" if result["threads"] else f"Triton {result['triton']}, "
    return f"torch {result['torch']}, {triton}commit {(result['commit'] or 'unknown')[:9]}, {result['date'][:10]}"


def ours(result: Result) -> str:
    """Which of our providers a file's tables are about."""
    measured = {row["provider"] for row in result["rows"]}
    return next((name for name in OURS if name in measured or f"{name}+norm" in measured), OURS[-1])


def cpu_tables(result: Result) -> str:
    """Median milliseconds of all providers at the sizes that have them, and our ratios at every size."""
    found = groups(result)
    detailed = {key: group for key, group in found.items() if "paper-eager" in group or "eager+compile" in group}
    providers = [name for name in PROVIDERS if any(name in group for group in detailed.values())]
    lines = [
        f"Median milliseconds, float32, NCHW, {result['threads']} threads of an {result['device']}, {_taken(result)}. "
        "In brackets: how many times faster than the authors' module in eager mode.",
        "",
        "| | | " + " | ".join(PROVIDERS[name] for name in providers) + " |",
        "|---|---|" + "---|" * len(providers),
    ]
    for (case, direction, *_), group in detailed.items():
        lines.append(_line([case, direction, *(_milliseconds(group.get(name)) for name in providers)]))
    usual = [key for key in found if (key.dtype, key.layout) == USUAL]
    lines += [
        "",
        "Our times at every size, from the same run: milliseconds; how many times faster than the authors' module in "
        "eager mode / than the vectorised form under torch.compile; the ceiling in percent of our time. The ceiling is "
        "the time of copying the fewest bytes, or of copies and sums where gradients are taken.",
        *_ratios({key: found[key] for key in usual}, ours(result)),
    ]
    if len(usual) < len(found):
        others = {key: group for key, group in found.items() if key not in usual}
        lines += ["", "In other types and memory formats:", *_ratios(others, ours(result))]
    return "\n".join(lines) + "\n"


def one_thread_table(result: Result) -> str:
    """Our ratios with a single thread."""
    return "\n".join(["", f"With one thread ({_taken(result)}):", *_ratios(groups(result), ours(result))]) + "\n"


def _milliseconds(row: Row | None) -> str:
    if row is None or row["us_p50"] is None:
        return "–" if row is None else "wrong"
    time = f"{row['us_p50'] / 1000:.2f}"
    return time if row["provider"] == "eager" else f"{time} ({row['speedup_vs_eager']:.1f}×)"


def _ratios(found: dict[RowWorkload, Group], name: str) -> list[str]:
    columns = (("forward", name), ("forward+backward", name), ("train-norm", f"{name}+norm"))
    lines = ["", "| | forward | forward+backward | train-norm (authors' form) |", "|---|---|---|---|"]
    kinds = dict.fromkeys((key.dtype, key.layout) for key in found)
    for case, (dtype, layout) in itertools.product(sizes.by_map({key.case for key in found}), kinds):
        here = [found.get(RowWorkload(case, direction, dtype, layout), {}) for direction, _ in columns]
        cells = [_ratio(group, name) for group, (_, name) in zip(here, columns, strict=True)]
        kind = "" if (dtype, layout) == USUAL else f", {dtype}, {layout}"
        lines.append(_line([case + kind, *cells]))
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


def gpu_table(result: Result, dtype: str = "float16") -> str:
    """Ours in one type, a line for every size and memory format."""
    columns = (
        ("forward", "fused[triton]"), ("backward", "fused[triton]"), ("forward+backward", "fused[triton]"),
        ("train-norm", "fused[triton]+norm"),
    )  # fmt: skip
    lines = [
        f"Our times in {dtype}: median microseconds on the device, cold caches, {result['device']}, {_taken(result)}. "
        "Then how many times faster than the authors' module in eager mode / than the vectorised form under "
        "torch.compile; then the time of moving the fewest bytes, in percent of ours. Host: microseconds of a call at "
        "batch 1, without gradients.",
        "",
        "| | | forward | backward | forward+backward | train-norm (authors' form) | host |",
        "|---|---|---|---|---|---|---|",
    ]
    found = groups(result)
    for case in sizes.by_map({case for case, *_ in found}):
        for layout in ("nchw", "channels_last"):
            here = [found.get(RowWorkload(case, direction, dtype, layout), {}) for direction, _ in columns]
            if any(here):
                cells = [_ratio(group, name, unit=1, digits=1) for group, (_, name) in zip(here, columns, strict=True)]
                row = here[0].get("fused[triton]")
                host = None if row is None else row.get("host_us")
                lines.append(_line([case, layout, *cells, "–" if host is None else f"{host:.0f}"]))
    return "\n".join(lines) + "\n"


def gain(result: Result) -> str:
    """The range, over all sizes, of what the authors' form gains over the authors' module, and where it was measured.

    Empty where the result has no such figures.
    """
    parts = []
    for direction, words in GAINS.items():
        gains = [
            row["speedup_vs_eager"] for row in result["rows"]
            if row["direction"] == direction and row["provider"] == f"{ours(result)}+norm"
            and row["speedup_vs_eager"] is not None
            and (result["threads"] is None or (row["dtype"], row["layout"]) == USUAL)
        ]  # fmt: skip
        if gains:
            parts.append(f"{words} **{min(gains):.1f} to {max(gains):.1f} times**")
    if not parts:
        return ""
    threads = f"{result['threads']} threads of an " if result["threads"] else ""
    types = "float32, NCHW" if result["threads"] else " and ".join(sorted({row["dtype"] for row in result["rows"]}))
    return f"{' and '.join(parts)} as fast ({types}, {threads}{result['device']})"


def rendered() -> dict[pathlib.Path, str]:
    """Both pages with their figures and pictures made anew, each from the newest file of its kind."""
    files = sorted((read(path)["date"], path) for path in plots.published(schema.RESULTS))
    alone = [path for _, path in files if path.stem.endswith(schema.ONE_THREAD)]
    on_cpu = [path for _, path in files if path.name.startswith("cpu-") and path not in alone]
    on_gpu = [path for _, path in files if not path.name.startswith("cpu-")]
    gains = [(path, text) for path in (*on_cpu[-1:], *on_gpu[-1:]) if (text := gain(read(path)))]
    sentence = f"Compared with eager PyTorch, the fused module {'; it '.join(text for _, text in gains)}."
    unmeasured = "" if on_gpu else " Times on a GPU are not measured yet."
    cpu = cpu_tables(read(on_cpu[-1])) if on_cpu else "Not measured yet.\n"
    cpu += one_thread_table(read(alone[-1])) if alone else ""
    cpu += pictures(on_cpu[-1]) if on_cpu else ""
    gpu = gpu_table(read(on_gpu[-1])) + pictures(on_gpu[-1]) if on_gpu else UNMEASURED
    readme = _between(README.read_text(), "gain", f"{sentence}{unmeasured} [All figures](docs/figures.md).\n")
    figures = _between(_between(FIGURES.read_text(), "cpu-table", cpu), "gpu-table", gpu)
    return {README: _between(readme, "picture", _picture(gains[-1][0], "speedup", README)), FIGURES: figures}


def pictures(path: pathlib.Path) -> str:
    """Those that plots.py draws of this file, and a word on what it has no figures for."""
    kinds = plots.wanted(read(path))
    lines = [_picture(path, kind, FIGURES) for kind in kinds]
    if "memory" not in kinds:
        lines.append("Memory was not measured: PyTorch counts it on a GPU only.\n")
    return "\n" + "\n".join(lines)


def _picture(path: pathlib.Path, kind: str, page: pathlib.Path) -> str:
    target = pathlib.Path(os.path.relpath(plots.picture(path, kind), page.parent)).as_posix()
    return f"![{plots.KINDS[kind].title}]({target})\n"


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = page.split(begin)
    return before + begin + text + end + rest.split(end)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    arguments = parser.parse_args()
    pages = rendered()
    if arguments.check:
        differing = [page.name for page, text in pages.items() if text != page.read_text()]
        print(f"differ from the measurements: {', '.join(differing)}" if differing else "pages and measurements agree")
        return int(bool(differing))
    for page, text in pages.items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
