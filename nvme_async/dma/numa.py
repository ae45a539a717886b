"""Which NUMA nodes have memory."""

from __future__ import annotations

from pathlib import Path


def memory_nodes(root: Path = Path("/")) -> tuple[int, ...]:
    """Their numbers, ascending; empty if the system doesn't report them."""
    try:
        text = (root / "sys/devices/system/node/has_memory").read_text().strip()
    except OSError:
        return ()
    nodes: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            nodes.extend(range(int(first), int(last or first) + 1))
    return tuple(nodes)
