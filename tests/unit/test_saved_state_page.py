"""docs/reference/saved-state.md says what the code does."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from nvme_async.keepalive import bundle, manifest, state
from nvme_async.manager import servicing

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "saved-state.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, or of the one whose head has that text."""
    lines = PAGE[PAGE.index(heading) :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| ") and index > 0)
    start = 0 if lines[0].endswith(" |") else start
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def said(kind: Any) -> str:
    """A field's type in the words of the page."""
    if isinstance(kind, types.UnionType):
        return " or ".join("null" if part is type(None) else said(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return "str"
    if typing.get_origin(kind) is list:
        return "list"
    if typing.get_origin(kind) is dict or attrs.has(kind):
        return "object"
    return str(kind.__name__)


@pytest.mark.parametrize(
    ("heading", "part"),
    [
        ("### The state", state.State),
        ("### The device", state.DeviceIdentity),
        ("### The registers", state.RegisterState),
        ("### A queue pair", state.QueueState),
        ("### Queues in the controller's memory", state.CmbState),
        ("### A namespace", state.NamespaceState),
        ("### A registration", state.RegistrationState),
    ],
)
def test_the_fields_are_those_of_the_code(heading: str, part: Any) -> None:
    attrs.resolve_types(part)
    fields = [(field.name, said(field.type)) for field in attrs.fields(part) if field.name != "extra"]
    assert [(name.strip("`"), kind) for name, kind, _ in rows(heading)] == fields


def test_the_formats_are_those_of_the_code() -> None:
    formats = rows("## Which release reads what")
    assert [int(row[0]) for row in formats] == list(range(1, state.FORMAT + 1))
    assert f"This release writes format {state.FORMAT}." in " ".join(PAGE.split())
    conditional = [int(row[0]) for row in formats if "unless" in row[3]]
    assert conditional == [state.DOUBTFUL, state.SHARED, state.FUSED, state.IN_CMB]


def test_the_headers_are_those_of_the_code() -> None:
    half = [row for row in rows("## The manifest") if row[1] != "…"]
    assert half[0][2] == f"`{manifest._MAGIC.decode()}`"
    assert half[1][2].endswith(f": {manifest._VERSION}")
    assert int(half[-1][0]) + int(half[-1][1]) == manifest._HEADER.size
    assert int(half[3][0]) == manifest._SEQUENCE_AT
    frame = rows("| offset | bytes | header of a bundle |")
    assert frame[0][2] == f"`{bundle._MAGIC.decode()}`"
    assert frame[1][2] == f"version: {bundle._VERSION}"
    assert str(bundle._MAX_DESCRIPTORS) in frame[2][2]
    assert int(frame[-1][0]) + int(frame[-1][1]) == bundle._HEADER.size
    for table in (half, frame):
        for before, after in zip(table, table[1:], strict=False):
            assert int(before[0]) + int(before[1]) == int(after[0])
    assert f"header of {servicing._HEADER.size} bytes: `{servicing._MAGIC.decode()}`" in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("source", "struct", "head"),
    [
        ("ext/dma/pool.h", "pool_header", "| offset | bytes | header |"),
        ("ext/dma/pool.h", "pool_slot", "| offset | bytes | slot |"),
        ("ext/hotpath/layout.h", "nvq_header", "| offset | header of a queue pair |"),
    ],
)
def test_the_offsets_are_those_that_the_compiler_checks(source: str, struct: str, head: str) -> None:
    text = (ROOT / source).read_text()
    asserted = {name: int(offset) for name, offset in re.findall(rf"offsetof\(struct {struct}, (\w+)\) == (\d+)", text)}
    table = {row[-1].split("`")[1]: int(row[0]) for row in rows(head)}
    assert asserted
    for name, offset in table.items():
        assert offset == asserted.get(name, 0), name
