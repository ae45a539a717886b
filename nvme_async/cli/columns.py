"""Tables of plain text that fit: a narrow terminal gets fewer columns, never a truncated figure;
a pipe gets all.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

import attrs

_GAP = 2


@attrs.frozen
class Column:
    """rank: if there is no room for all columns, the highest is dropped first; 0 stays. elastic:
    text that may be shortened in its middle down to `least` characters, which a figure never is.
    """

    name: str
    rank: int = 0
    right: bool = True
    elastic: bool = False
    least: int = 12


def terminal_width() -> int | None:
    """The terminal's width if stdout is one; None for a pipe or a file, which has no limit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines: the names, and one per row; aligned, at most `width` wide if possible."""
    shown = list(range(len(columns)))
    widths = [max([len(column.name), *(len(row[at]) for row in rows)]) for at, column in enumerate(columns)]
    least = [
        min(own, max(len(columns[at].name), columns[at].least)) if columns[at].elastic else own
        for at, own in enumerate(widths)
    ]
    if width is not None:
        while sum(least[at] + _GAP for at in shown) - _GAP > width:
            droppable = [at for at in shown if columns[at].rank]
            if not droppable:
                break
            shown.remove(max(droppable, key=lambda at: columns[at].rank))
        over = sum(widths[at] + _GAP for at in shown) - _GAP - width
        for at in shown:
            if over > 0 and columns[at].elastic:
                cut = min(over, widths[at] - least[at])
                widths[at], over = widths[at] - cut, over - cut
    lines = []
    for row in [[column.name for column in columns], *rows]:
        cells = [_cell(columns[at], row[at], widths[at]) for at in shown]
        lines.append((" " * _GAP).join(cells).rstrip())
    return lines


def _cell(column: Column, text: str, width: int) -> str:
    text = elided(text, width) if column.elastic else text
    return text.rjust(width) if column.right else text.ljust(width)


def elided(text: str, width: int) -> str:
    """At most `width` characters: start and end, since the end of a name distinguishes it."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def indented(first: str, text: str, width: int | None = None) -> str:
    """`text` after `first`, with further lines indented below its start; on one line without a
    width.
    """
    if width is None:
        return first + text
    hanging = " " * len(first)
    options = {"break_long_words": False, "break_on_hyphens": False}
    return "\n".join(
        textwrap.wrap(text, max(40, width), initial_indent=first, subsequent_indent=hanging, **options)  # type: ignore[arg-type]
    )
