"""The sizes whose figures are published, the most important first."""

import re

CASES = (
    "256x512x14x14/g4", "256x128x56x56/g4", "64x160x7x7/g8", "256x1024x7x7/g4", "1x512x14x14/g4", "128x64x56x56/g1",
    "256x32x112x112/g1", "128x128x28x28/g4", "256x256x28x28/g1", "256x512x14x14/g1", "256x1024x7x7/g16",
    "32x128x56x56/g4", "1x64x56x56/g4",
)  # fmt: skip
SMALL_BATCH = 8


def numbers(case: str) -> tuple[int, ...]:
    """N, C, H, W and the number of subspaces of NxCxHxW/gK."""
    return tuple(int(number) for number in re.findall(r"\d+", case))


def small() -> list[str]:
    """The same at a batch for a CPU, without repetitions."""
    found = []
    for case in CASES:
        batch, rest = case.split("x", 1)
        found.append(f"{min(int(batch), SMALL_BATCH)}x{rest}")
    return list(dict.fromkeys(found))


def by_map(cases: set[str]) -> list[str]:
    """In the order of a network, large maps first; then by channels, subspaces and batch."""

    def place(case: str) -> tuple[int, ...]:
        n, c, h, w, g = numbers(case)
        return -h * w, c, g, -n

    return sorted(cases, key=place)
