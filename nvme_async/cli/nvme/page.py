"""A command that reads one page and shows it, and how pages are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import click

from nvme_async.cli.nvme.explain import Rows
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.driver.management.logs import read_log
from nvme_async.spec import commands
from nvme_async.spec.opcodes import NSID_ALL

Option = tuple[tuple[str, ...], str, Any, Any, str]
Options = dict[str, Any]
Read = Callable[[Any, Options], Awaitable[bytes]]


@attrs.frozen(kw_only=True)
class Page:
    """A command that reads one page.

    Attributes:
        about: the first line of its help.
        read: gets the bytes from a controller, with the options; may add options for `shape`.
        shape: nvme-cli's JSON of the bytes, with the options.
        options: (flags, name, type, default, help) in addition to the common ones.
        bits: name of the explanations of its fields, see `explain`.
        text: the normal output, from the bytes, the options and the explanations; None: a line for
            each field of the JSON.
    """

    about: str
    read: Read
    shape: Callable[[bytes, Options], Any]
    options: tuple[Option, ...] = ()
    bits: str = ""
    text: Callable[[bytes, Options, Mapping[str, Rows]], str] | None = None


NSID: Option = (("-n", "--namespace-id"), "nsid", int, None, "Namespace.  [default: the first]")
NSID_OR_ALL: Option = (("-n", "--namespace-id"), "nsid", int, NSID_ALL, "Namespace.  [default: the controller]")
CNTID: Option = (("-c", "--cntid"), "cntid", int, 0, "First controller identifier of the list.")
RAE: Option = (("-r", "--rae"), "rae", bool, False, "Retain the asynchronous event.")
UUID_INDEX: Option = (("-U", "--uuid-index"), "uuid_index", int, 0, "UUID index.")


async def read_identify(controller: Any, cns: int, nsid: int = 0, **more: int) -> bytes:
    """A page of Identify. more: cntid, csi, cns_id (CNS specific identifier), uuid_index."""
    completion = await controller.admin(
        commands.identify(
            cns,
            nsid,
            more.get("cntid", 0),
            more.get("csi", 0),
            more.get("cns_id", 0),
            more.get("uuid_index", 0),
        )
    )
    data: bytes = completion.data
    return data


def identify(cns: int, *, csi: int = 0, of_namespace: bool = False, fixed_nsid: int | None = None) -> Read:
    """Reads a page of Identify, with the options nsid, cntid, setid, csi and uuid_index."""

    async def read(controller: Any, options: Options) -> bytes:
        if fixed_nsid is not None:
            nsid = fixed_nsid
        else:
            nsid = first_namespace(controller, options.get("nsid")) if of_namespace else options.get("nsid") or 0
        return await read_identify(
            controller,
            cns,
            nsid,
            cntid=options.get("cntid") or 0,
            csi=options.get("csi", csi) or 0,
            cns_id=options.get("setid") or 0,
            uuid_index=options.get("uuid_index") or 0,
        )

    return read


def log(lid: int, nbytes: int, **fixed: int) -> Read:
    """Reads a log page, with the options entries, nsid, lsi, lsp, csi and rae. The event that a
    page belongs to is retained unless a command has --rae and it isn't given.
    """

    async def read(controller: Any, options: Options) -> bytes:
        length = nbytes * (options.get("entries") or 1)
        chosen = {
            "nsid": options.get("nsid", NSID_ALL),
            "lsi": options.get("lsi") or 0,
            "lsp": options.get("lsp") or 0,
            "csi": options.get("csi") or 0,
            "rae": bool(options.get("rae", True)),
            **fixed,
        }
        return await read_log(controller, lid, length, **chosen)

    return read


def fields(data: Any) -> dict[str, Any]:
    """A decoded structure's fields by their names."""
    return {field.name: getattr(data, field.name) for field in attrs.fields(type(data))}


def log_of_length(
    lid: int, head: int, length: Callable[[bytes], int], *, most: int = 16 << 20, head_lsp: int = 0xFF
) -> Read:
    """Reads a log page that says how long it is, with the options of `log`. head: bytes that
    `length` needs; most: bytes that are believed; head_lsp: mask of the log specific field for the
    head.
    """

    async def read(controller: Any, options: Options) -> bytes:
        chosen = {
            "nsid": options.get("nsid", NSID_ALL),
            "lsi": options.get("lsi") or 0,
            "rae": bool(options.get("rae", True)),
        }
        lsp = options.get("lsp") or 0
        first = await read_log(controller, lid, head, lsp=lsp & head_lsp, **chosen)
        wanted = (max(head, length(first)) + 3) & ~3
        if wanted > most:
            raise click.ClickException(f"log page {lid:#04x} says that it has {wanted} bytes, more than {most}")
        return await read_log(controller, lid, wanted, lsp=lsp, **chosen)

    return read
