"""Zoned namespaces (ZNS Command Set 1.1): operations on zones besides reading."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from nvme_async.driver.command_io import blocks_in
from nvme_async.driver.directed import directive_of, with_streams
from nvme_async.errors import CommandError, ConfigurationError
from nvme_async.native._placement import byte_view
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Cns, Csi, LogPage, ZoneReportOption, ZoneSendAction
from nvme_async.spec.zns import ChangedZones, IdentifyControllerZns, IdentifyNamespaceZns, ZoneDescriptor, ZoneReport

if TYPE_CHECKING:
    from nvme_async.driver.namespace import Namespace

_REPORT_BYTES = 64 << 10
_CHANGED_BYTES = 4096


class ZonedNamespace:
    """A namespace whose blocks are written zone by zone, each at its write pointer.

        zoned = await ZonedNamespace.of(controller.namespaces[1])
        async for zone in zoned.zones(): …
        lba = await zoned.append(zone.zslba, data)     # where it went

    Zones are identified by their first block. Usable from any loop, like the namespace.

    Attributes:
        namespace: reads go through it, and writes at write pointers may.
        identify: Identify Namespace of the zoned command set.
        zone_size: blocks from one zone to the next.
        max_open, max_active: zones in these states at once; None for no limit (MOR, MAR).
        max_append: blocks of one append (ZASL).

    Methods raise the exceptions of Namespace's methods, and if a zone forbids a write:
    ZoneBoundaryError, ZoneFull, ZoneReadOnly, ZoneOffline, ZoneInvalidWrite, TooManyActiveZones,
    TooManyOpenZones, InvalidZoneTransition.
    """

    def __init__(
        self, namespace: Namespace, identify: IdentifyNamespaceZns, controller: IdentifyControllerZns | None
    ) -> None:
        self.namespace = namespace
        self.identify = identify
        self.zone_size: int = identify.zone_size(namespace.identify.lbaf_index)
        self.max_open: int | None = identify.max_open_zones
        self.max_active: int | None = identify.max_active_zones
        self.max_append: int = namespace.max_blocks
        if controller is not None and controller.zasl:
            limit = namespace.controller.cap.min_page_size << controller.zasl
            self.max_append = min(self.max_append, max(1, limit // namespace.block_size))

    @classmethod
    async def of(cls, namespace: Namespace) -> ZonedNamespace:
        """Queries the zones' properties. ConfigurationError for a namespace that isn't zoned."""
        admin = namespace.controller.admin
        try:
            page = await admin(commands.identify(Cns.CSI_NAMESPACE, namespace.nsid, csi=Csi.ZNS))
            assert page.data is not None
            identify = IdentifyNamespaceZns.decode(page.data)
            if not identify.zone_size(namespace.identify.lbaf_index):
                raise ConfigurationError(f"namespace {namespace.nsid} is not zoned")
        except CommandError as error:
            raise ConfigurationError(f"namespace {namespace.nsid} is not zoned: {error}") from error
        controller = None
        try:
            page = await admin(commands.identify(Cns.CSI_CONTROLLER, csi=Csi.ZNS))
            assert page.data is not None
            controller = IdentifyControllerZns.decode(page.data)
        except CommandError:
            pass  # no separate limit
        return cls(namespace, identify, controller)

    @property
    def zone_count(self) -> int:
        return self.namespace.blocks // self.zone_size

    def zone_of(self, lba: int) -> int:
        """The first block of the zone that `lba` is in."""
        return lba - lba % self.zone_size

    def _zone(self, zslba: int) -> int:
        if zslba < 0 or zslba % self.zone_size or zslba >= self.namespace.blocks:
            raise ValueError(
                f"no zone begins at block {zslba}; zones have {self.zone_size} blocks, "
                f"the namespace {self.namespace.blocks}"
            )
        return zslba

    # -- reports -----------------------------------------------------------------------------

    async def report(
        self, lba: int = 0, *, option: ZoneReportOption = ZoneReportOption.ALL, limit: int | None = None
    ) -> ZoneReport:
        """One report of zones from the one with `lba` on, at most `limit`, or as many as one
        command returns. Its `nzones` counts all that match.
        """
        most = min(_REPORT_BYTES, self.namespace.controller.transport.max_transfer)
        nbytes = most if limit is None else min(most, 64 + 64 * max(1, limit))
        completion = await self.namespace.submit(
            commands.zone_management_receive(self.namespace.nsid, lba, nbytes, option=option)
        )
        assert completion.data is not None
        return ZoneReport.decode(completion.data)

    async def zones(
        self, lba: int = 0, *, option: ZoneReportOption = ZoneReportOption.ALL
    ) -> AsyncIterator[ZoneDescriptor]:
        """Every zone from the one with `lba` on, as of its report; uses as many reports as
        necessary.
        """
        at = self.zone_of(lba)
        while at < self.namespace.blocks:
            found = await self.report(at, option=option)
            for zone in found.zones:
                yield zone
            if not found.zones or found.nzones <= len(found.zones):
                return
            at = found.zones[-1].zslba + self.zone_size

    async def zone(self, zslba: int) -> ZoneDescriptor:
        """One zone as it is now."""
        return (await self.report(self._zone(zslba), limit=1)).zones[0]

    async def changed(self) -> ChangedZones:
        """The zones that the controller has changed by itself since the last call (LID BFh); a
        "controller-event" announces changes.
        """
        completion = await self.namespace.controller.admin(
            commands.get_log_page(LogPage.CHANGED_ZONES, _CHANGED_BYTES, self.namespace.nsid)
        )
        assert completion.data is not None
        return ChangedZones.decode(completion.data)

    # -- zone management --------------------------------------------------------------------------

    async def _act(self, action: ZoneSendAction, zslba: int | None) -> None:
        zone = 0 if zslba is None else self._zone(zslba)
        await self.namespace.submit(
            commands.zone_management_send(self.namespace.nsid, zone, action, all_zones=zslba is None)
        )

    async def open(self, zslba: int | None) -> None:
        """Opens a zone explicitly; None: all closed ones."""
        await self._act(ZoneSendAction.OPEN, zslba)

    async def close(self, zslba: int | None) -> None:
        """Closes a zone; None: all open ones."""
        await self._act(ZoneSendAction.CLOSE, zslba)

    async def finish(self, zslba: int | None) -> None:
        """Makes a zone full; None: all open and closed ones."""
        await self._act(ZoneSendAction.FINISH, zslba)

    async def reset(self, zslba: int | None) -> None:
        """Makes a zone empty, its data are lost; None: all non-empty ones."""
        await self._act(ZoneSendAction.RESET, zslba)

    async def offline(self, zslba: int | None) -> None:
        """Sets a read only zone offline, its data are lost; None: all read only ones."""
        await self._act(ZoneSendAction.OFFLINE, zslba)

    async def append(
        self,
        zslba: int,
        data: Buffer,
        *,
        fua: bool = False,
        placement: int | None = None,
        stream: int | None = None,
    ) -> int:
        """Writes `data` at the zone's write pointer and returns its first block (Zone Append).
        Meant for several at once. At most max_append blocks. placement, stream: as for
        Namespace.write().
        """
        namespace = self.namespace
        if namespace.has_metadata:
            raise ConfigurationError(f"namespace {namespace.nsid} has metadata: use submit() with zone_append()")
        blocks = blocks_in(byte_view(data).nbytes, namespace.block_size)
        if blocks > self.max_append:
            raise ValueError(f"{blocks} blocks in one append; the limit is {self.max_append}")
        kind, value = 0, 0
        if placement is not None or stream is not None:
            kind, value = await directive_of(namespace, placement, stream)
        command = commands.zone_append(namespace.nsid, self._zone(zslba), blocks, fua=fua, dtype=kind, dspec=value)
        completion = await with_streams(namespace, stream, lambda: namespace.submit(command, data))
        return completion.dw1 << 32 | completion.dw0

    async def write(
        self,
        lba: int,
        data: Buffer,
        *,
        fua: bool = False,
        placement: int | None = None,
        stream: int | None = None,
    ) -> None:
        """Writes at a zone's write pointer, one command after another. ZoneInvalidWrite anywhere
        else. placement, stream: as for Namespace.write().
        """
        view, size = byte_view(data), self.namespace.block_size
        step = self.namespace.max_blocks * size
        blocks_in(view.nbytes, size)
        for at in range(0, view.nbytes, step):
            part = view[at : at + step]
            await self.namespace.write(lba + at // size, part, fua=fua, placement=placement, stream=stream)

    async def read(self, lba: int, blocks: int = 1) -> bytes:
        """As Namespace.read(). Blocks beyond a write pointer read as zeroes."""
        return await self.namespace.read(lba, blocks)

    def __repr__(self) -> str:
        return f"<ZonedNamespace {self.namespace.nsid}: {self.zone_count} zones of {self.zone_size} blocks>"
