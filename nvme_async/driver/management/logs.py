"""Log pages of any length, and those that take several commands in the right order."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nvme_async.errors import ManagementError, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.logs import TelemetryHeader
from nvme_async.spec.opcodes import NSID_ALL, LogPage
from nvme_async.spec.persistent import PersistentEventLog

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller
    from nvme_async.spec._layout import Layout

L = TypeVar("L", bound="Layout")

PIECE = 4096
"""Bytes of one Get Log Page that every controller can transfer."""
_ATTEMPTS = 3
_CREATE = 1
_READ, _ESTABLISH, _RELEASE = 0, 1, 2
_MOST = 256 << 20


async def read_log(
    controller: Controller,
    lid: int,
    nbytes: int,
    *,
    offset: int = 0,
    nsid: int = NSID_ALL,
    lsp: int = 0,
    lsi: int = 0,
    rae: bool = False,
    csi: int = 0,
    uuid_index: int = 0,
) -> bytes:
    """`nbytes` (a multiple of 4) of a log page from `offset` on, in as many commands as
    necessary.

    rae: the events that the page belongs to stay masked. It is set for all commands except the last
    anyway, so that the page doesn't change in between.
    """
    if nbytes <= 0 or nbytes % 4 or nbytes > _MOST:
        raise ValueError(f"nbytes is {nbytes}, not a positive multiple of 4 up to {_MOST}")
    piece = PIECE if nbytes > PIECE else nbytes
    if controller.identify.mdts and nbytes > PIECE:
        piece = min(controller.transport.max_transfer, 64 << 10)
    parts = []
    for at in range(0, nbytes, piece):
        length = min(piece, nbytes - at)
        last = at + length == nbytes
        completion = await controller.admin(
            commands.get_log_page(
                lid,
                length,
                nsid,
                offset + at,
                lsp if not at else lsp & ~1 if lid == LogPage.TELEMETRY_HOST else lsp,
                lsi,
                rae or not last,
                uuid_index,
                csi,
            )
        )
        assert completion.data is not None
        parts.append(completion.data)
    return b"".join(parts)


async def read_typed_log(controller: Controller, kind: type[L], lid: int, *, nsid: int = NSID_ALL, lsi: int = 0) -> L:
    """A log page of a fixed layout, decoded."""
    return kind.decode(await read_log(controller, lid, kind.SIZE, nsid=nsid, lsi=lsi))


async def telemetry_log(
    controller: Controller, *, host: bool = True, area: int = 3, create: bool = True, rae: bool = True
) -> bytes:
    """A telemetry log page, header and data areas 1 to `area` (Base 2.1, 5.1.12.1.8 and
    5.1.12.1.9).

    host: the host-initiated page; create: the controller collects new data. Otherwise the
    controller-initiated one; rae=False releases it after reading. ManagementError if the controller
    repeatedly replaces the data while they are read.
    """
    lid = LogPage.TELEMETRY_HOST if host else LogPage.TELEMETRY_CONTROLLER
    for _ in range(_ATTEMPTS):
        first = await read_log(controller, lid, 512, lsp=_CREATE if host and create else 0, rae=True)
        header = TelemetryHeader.decode(first)
        nbytes = header.area_bytes(area)
        rest = b""
        if nbytes > 512:
            rest = await read_log(controller, lid, nbytes - 512, offset=512, rae=True)
        again = TelemetryHeader.decode(await read_log(controller, lid, 512, rae=rae))
        if (again.hostdgn, again.ctrldgn) == (header.hostdgn, header.ctrldgn):
            return first + rest
    raise ManagementError(f"{controller.uri}: the telemetry data changed {_ATTEMPTS} times while they were read")


async def persistent_event_bytes(controller: Controller) -> bytes:
    """The Persistent Event log page (Base 2.1, 5.1.12.1.14), read within a reporting context,
    which is released again in any case.
    """
    lid = LogPage.PERSISTENT_EVENT
    try:
        await read_log(controller, lid, 512, lsp=_RELEASE)  # a context left by another reader
    except NvmeError:
        pass
    head = await read_log(controller, lid, 512, lsp=_ESTABLISH)
    try:
        length = PersistentEventLog.length(head)
        rest = b""
        if length > 512:
            whole = (min(length, _MOST) - 512 + 3) & ~3
            rest = await read_log(controller, lid, whole, offset=512, lsp=_READ)
        return (head + rest)[:length]
    finally:
        await read_log(controller, lid, 512, lsp=_RELEASE)


async def persistent_event_log(controller: Controller) -> PersistentEventLog:
    """The Persistent Event log, decoded; see `persistent_event_bytes`."""
    return PersistentEventLog.decode(await persistent_event_bytes(controller))
