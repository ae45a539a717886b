"""How answers are shown: JSON, `name : value` lines, a table, or the bytes themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import attrs
import click

from nvme_async.cli.nvme.explain import Rows, bit_lines

FORMATS = ("normal", "json", "binary", "tabular")
_HEXADECIMAL = frozenset(
    {
        "nsfeat",
        "nmic",
        "rescap",
        "dps",
        "dpc",
        "mc",
        "flbas",
        "status_field",
        "cdw10_info",
        "scdw10",
        "ozcs",
        "zoc",
        "rci",
    }
)


def plain(value: Any) -> Any:
    """JSON's types, from decoded spec types: fields by the specification's names, bytes as
    hexadecimal.
    """
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, IntEnum | int):
        return int(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(plain(item) for item in value)
    return value


def _printable(value: str) -> str:
    """Text from a device, safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in value)


def lines(value: Any, indent: int = 0, bits: Mapping[str, Rows] | None = None) -> list[str]:
    """`name : value`, nested ones below their name; bits: explanations of bit fields by name."""
    result: list[str] = []
    bits = bits or {}
    space = " " * indent
    if isinstance(value, Mapping):
        width = max((len(str(key)) for key in value), default=0)
        for key, item in value.items():
            if isinstance(item, (Mapping, list)) and item:
                result.append(f"{space}{key}:")
                result += lines(item, indent + 2, bits)
            else:
                result.append(f"{space}{key:<{width}} : {_value(str(key), item)}")
                if isinstance(item, int):
                    result += bit_lines(bits.get(str(key), ()), item, space + "  ")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, (Mapping, list)):
                result.append(f"{space}[{index}]")
                result += lines(item, indent + 2, bits)
            else:
                result.append(f"{space}[{index}] : {_value('', item)}")
    else:
        result.append(f"{space}{_value('', value)}")
    return result


def _value(name: str, value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return "-"
    if isinstance(value, int):
        return f"{value:#x}" if name in _HEXADECIMAL and value else str(value)
    return _printable(str(value))


def table(rows: list[Any]) -> list[str]:
    """Columns by the keys of the first row."""
    if not rows or not isinstance(rows[0], Mapping):
        return lines(rows)
    head = list(rows[0])
    cells = [head, *([_value(key, row.get(key, "")) for key in head] for row in rows)]
    widths = [max(len(str(row[column])) for row in cells) for column in range(len(head))]
    return ["  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def show(
    output: str,
    data: bytes | None,
    value: Any,
    *,
    title: str = "",
    text: Callable[[], str] | None = None,
    bits: Mapping[str, Rows] | None = None,
) -> None:
    """Writes the answer to stdout in the requested format. data: the bytes, for "binary"."""
    if output == "binary":
        if data is None:
            raise click.UsageError("there is no binary form of this output: choose another --output-format")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    elif output == "json":
        click.echo(json.dumps(plain(value), indent=2))
    elif text is not None and output == "normal":
        click.echo(text())
    else:
        shown = plain(value)
        if output == "tabular":
            nested = [item for item in shown.values() if isinstance(item, list)] if isinstance(shown, dict) else [shown]
            rows = max(nested, key=len, default=[])
            click.echo("\n".join(table(rows) if rows else lines(shown)))
            return
        if title:
            click.echo(title)
        click.echo("\n".join(lines(shown, bits=bits)))
