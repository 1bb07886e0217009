"""In which order the blocks of a kernel run where lanes have diverged: those at the smallest number go first.

Numbers are a reverse postorder of a search that leaves loops before it enters their bodies. So whoever has left a loop
waits behind it for those inside, and diverged lanes join again where their paths meet.
"""

from .parse import Kernel


def successors(kernel: Kernel) -> list[list[int]]:
    found = []
    for b, block in enumerate(kernel.blocks):
        last = block[-1] if block else None
        op = last.op[0] if last else None
        following = [b + 1] if b + 1 < len(kernel.blocks) else []
        if last and op == "bra":
            target = [kernel.labels[str(last.operands[0])]]
            found.append(target + following if last.guard else target)
        else:
            found.append([] if op in ("ret", "exit") else following)
    return found


def order(after: list[list[int]]) -> list[int]:
    """The number of every block, given its successors."""
    depth = [0] * len(after)
    _nest(after, set(range(len(after))), 1, depth)
    done: list[int] = []
    seen = {0}
    work = [(0, sorted(after[0], key=depth.__getitem__))]
    while work:
        block, rest = work[-1]
        if not rest:
            done.append(block)
            work.pop()
        elif (following := rest.pop(0)) not in seen:
            seen.add(following)
            work.append((following, sorted(after[following], key=depth.__getitem__)))
    sequence = done[::-1] + [b for b in range(len(after)) if b not in seen]
    return [sequence.index(b) for b in range(len(after))]


def _nest(after: list[list[int]], nodes: set[int], level: int, depth: list[int]) -> None:
    """Sets how many loops each of these blocks lies in."""
    for loop in _components(after, nodes):
        if len(loop) > 1 or loop[0] in after[loop[0]]:
            for b in loop:
                depth[b] = level
            entries = {s for b in range(len(after)) if b not in loop for s in after[b] if s in loop}
            _nest(after, set(loop) - (entries or {min(loop)}), level + 1, depth)


def _components(after: list[list[int]], nodes: set[int]) -> list[list[int]]:
    """Strongly connected components of a part of the graph: whatever a block reaches that reaches it."""
    inside = {b: [s for s in after[b] if s in nodes] for b in nodes}
    before: dict[int, list[int]] = {b: [] for b in nodes}
    for b, following in inside.items():
        for s in following:
            before[s].append(b)
    rest, found = set(nodes), []
    while rest:
        b = min(rest)
        component = _reached(b, inside) & _reached(b, before) & rest
        found.append(sorted(component))
        rest -= component
    return found


def _reached(start: int, after: dict[int, list[int]]) -> set[int]:
    seen, work = {start}, [start]
    while work:
        new = set(after[work.pop()]) - seen
        seen |= new
        work += new
    return seen
