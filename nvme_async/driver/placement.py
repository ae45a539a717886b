"""Flexible Data Placement of a namespace (Base 2.1, 8.1.10; NVM Command Set 1.1, 5.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.fdp import (
    FdpConfiguration,
    FdpEvent,
    FdpEvents,
    FdpEventType,
    FdpStatistics,
    RuhStatus,
    RuhStatusDescriptor,
    RuhUsage,
    SupportedFdpEvent,
    configurations_size,
    decode_configurations,
    decode_supported_events,
)
from nvme_async.spec.identify import Ctratt, IdentifyNamespace
from nvme_async.spec.opcodes import IoManagementOperation, LogPage

_DESCRIPTOR, _HEADER = 32, 16


class Placeable(Protocol):
    """The part of a Namespace that placement needs."""

    nsid: int
    identify: IdentifyNamespace
    controller: Any

    async def submit(self, command: Command, buffer: Any = None, *, tag: int = 0) -> Completion: ...


class Placement:
    """Where the namespace's data go: `namespace.placement`.

        for unit in await namespace.placement.status():
            print(unit.pid, unit.ruamw)
        await namespace.write(lba, data, placement=unit.pid)

    A placement identifier stands for a reclaim unit handle and a reclaim group. Usable from any
    loop. ConfigurationError if the controller has no Flexible Data Placement; FdpDisabled if it is
    disabled for the namespace's endurance group.
    """

    def __init__(self, namespace: Placeable) -> None:
        self._namespace = namespace
        self._known: tuple[IdentifyNamespace, frozenset[int]] | None = None

    def _check(self) -> None:
        controller = self._namespace.controller
        if Ctratt.FLEXIBLE_DATA_PLACEMENT not in controller.identify.attributes:
            raise ConfigurationError(f"{controller.uri} has no Flexible Data Placement (Identify Controller, CTRATT)")

    async def identifiers(self) -> frozenset[int]:
        """The namespace's placement identifiers; the controller is asked once per format."""
        identify = self._namespace.identify
        if self._known is None or self._known[0] is not identify:
            self._known = identify, frozenset(one.pid for one in await self.status())
        return self._known[1]

    async def status(self) -> tuple[RuhStatusDescriptor, ...]:
        """For each placement identifier: its reclaim unit handle, and how many logical blocks
        can be written to its present reclaim unit (I/O Management Receive; Base 2.1, 7.3).
        """
        self._check()
        nbytes = 4096
        while True:
            command = commands.io_management_receive(self._namespace.nsid, IoManagementOperation.RUH_STATUS, nbytes)
            data = (await self._namespace.submit(command)).data
            assert data is not None
            found = RuhStatus.decode(data)
            needed = _HEADER + _DESCRIPTOR * found.nruhsd
            if needed <= nbytes or nbytes >= self._namespace.controller.transport.max_transfer:
                return found.descriptors
            nbytes = min(needed, self._namespace.controller.transport.max_transfer)

    async def update(self, *placements: int) -> None:
        """The next writes with these identifiers go to new reclaim units (I/O Management Send;
        Base 2.1, 7.4). ValueError for an identifier that the namespace doesn't have.
        """
        if not placements:
            raise ValueError("no placement identifiers are given")
        for placement in placements:
            await self.check(placement)
        await self._namespace.submit(
            commands.reclaim_unit_handle_update(self._namespace.nsid, len(placements)),
            commands.placement_list(placements),
        )

    async def check(self, placement: int) -> None:
        """ValueError for an identifier that the namespace doesn't have."""
        self._check()
        known = await self.identifiers()
        if placement not in known:
            have = ", ".join(map(str, sorted(known)[:16])) + (", …" if len(known) > 16 else "")
            raise ValueError(
                f"placement {placement} is not a placement identifier of namespace {self._namespace.nsid}, which has "
                f"{have or 'none'}"
            )

    async def _log(self, page: LogPage, nbytes: int, lsp: int = 0) -> bytes:
        self._check()
        group = self._namespace.identify.endgid
        command = commands.get_log_page(page, nbytes, lsp=lsp, lsi=group)
        data = (await self._namespace.controller.admin(command)).data
        assert data is not None
        return bytes(data)

    async def configurations(self) -> tuple[FdpConfiguration, ...]:
        """What the endurance group can be configured to (log page 20h)."""
        head = await self._log(LogPage.FDP_CONFIGURATIONS, _HEADER)
        size = max(_HEADER, configurations_size(head) + 3 & ~3)
        return decode_configurations(await self._log(LogPage.FDP_CONFIGURATIONS, size))

    async def usage(self) -> RuhUsage:
        """Which reclaim unit handles of the endurance group are used (log page 21h)."""
        head = await self._log(LogPage.FDP_RUH_USAGE, 8)
        count = int.from_bytes(head[:2], "little")
        return RuhUsage.decode(await self._log(LogPage.FDP_RUH_USAGE, 8 + 8 * count))

    async def statistics(self) -> FdpStatistics:
        """What was written to and erased from the endurance group, in bytes (log page 22h)."""
        return FdpStatistics.decode(await self._log(LogPage.FDP_STATISTICS, 64))

    async def events(self, *, host: bool = True) -> tuple[FdpEvent, ...]:
        """The endurance group's events that hosts caused, or the controller (log page 23h)."""
        return FdpEvents.decode(await self._log(LogPage.FDP_EVENTS, 4096, lsp=int(host))).events

    async def log_events(self, handle: int, types: Sequence[FdpEventType], enabled: bool = True) -> None:
        """Which events a placement handle logs (feature 1Eh; Base 2.1, 5.1.25.1.21)."""
        self._check()
        command = commands.set_fdp_events(self._namespace.nsid, handle, len(types), enabled)
        await self._namespace.controller.admin(command, bytes(types))

    async def logged_events(self, handle: int) -> tuple[SupportedFdpEvent, ...]:
        """The events that a placement handle can log, and whether it does."""
        self._check()
        completion = await self._namespace.controller.admin(commands.get_fdp_events(self._namespace.nsid, handle))
        assert completion.data is not None
        return decode_supported_events(completion.data, completion.dw0)
