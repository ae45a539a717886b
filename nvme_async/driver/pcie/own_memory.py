"""A PCI function's Controller Memory Buffer (Base 2.0, 8.5) and Persistent Memory Region (8.14):
enabled, mapped, and the former known to the queue pairs, so that commands transfer its data without
the bus. Queues, if an option puts them there, have the start of the buffer.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from nvme_async.device import Device
from nvme_async.driver.own_memory import ControllerMemory, PersistentMemory, PmrHealth
from nvme_async.driver.pcie.cmb_queues import CmbLayout, CmbQueues, CmbQueuesOption
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.pcie.registers import Registers
from nvme_async.errors import ConfigurationError, ControllerTimeout, DeviceError, NvmeError
from nvme_async.native._mmio import Mmio
from nvme_async.native._placement import AddressMap, address_of
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec.registers import (
    Cap,
    Cmbloc,
    Cmbmsc,
    Cmbsts,
    Cmbsz,
    Pmrcap,
    Pmrebs,
    Pmrsts,
    Pmrswtp,
    Register,
)

CONTROLLER_ADDRESSES = 1 << 63
"""Where commands find the controller's own memory (CMBMSC.CBA). Host memory never has such an
address: its own grow from 4 GiB up, within what an IOMMU translates. So if the controller no longer
answers there, after a reset, a transfer ends at the IOMMU and not in memory of the host.
"""
_SHORTEST_WAIT = 0.5
_BARS = range(2, 6)
_READ_REGION, _READ_STATUS = 1, 2  # PMRCAP.PMRWBM


class Pieces(Protocol):
    """The part of the PCIe transport that this module needs."""

    uri: str
    device: Device
    registers: Registers
    memory: DeviceMemory | None
    cap: Cap


class _Cmb(ControllerMemory):
    def __init__(self, window: Mmio, addresses: AddressMap, start: int) -> None:
        """start: the window's, in the buffer."""
        self.nbytes = window.nbytes
        self.buffer = memoryview(window)
        self.address = address_of(window)
        self.start = start
        self._addresses: AddressMap | None = addresses
        addresses.add(self.address, self.nbytes, CONTROLLER_ADDRESSES + start)

    @property
    def is_open(self) -> bool:
        return self._addresses is not None

    def close(self) -> None:
        addresses, self._addresses = self._addresses, None
        if addresses is not None:
            addresses.remove(self.address)
            self.buffer = memoryview(b"")


class _Pmr(PersistentMemory):
    def __init__(self, own: OwnMemory, window: Mmio, capabilities: Pmrcap, health: PmrHealth) -> None:
        self._own, self._capabilities = own, capabilities
        self._window: Mmio | None = window
        self.nbytes = window.nbytes
        self.is_open = True
        view = memoryview(window)
        self.buffer = view.toreadonly() if health is PmrHealth.READ_ONLY else view

    async def health(self) -> PmrHealth:
        return _health(await self._own.pmr_status(), self._own.uri)

    async def barrier(self) -> None:
        window = self._window
        if window is None:
            raise DeviceError(f"{self._own.uri}: the persistent memory region was closed")
        if window.lost:
            raise DeviceError(f"{self._own.uri}: the persistent memory region is no longer accessible")
        if not self._capabilities.pmrwbm & _READ_STATUS:
            await in_thread(window.read32, 0)
        health = await self.health()
        if health is not PmrHealth.NORMAL:
            raise DeviceError(f"{self._own.uri}: the persistent memory region is not healthy: {health.name.lower()}")

    def close(self) -> None:
        self.is_open = False
        self.buffer = memoryview(b"")
        self._window = None


class OwnMemory:
    """Owner of what is open; closed with the transport's memory."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._cmb: _Cmb | None = None
        self._pmr: _Pmr | None = None
        self.queues: CmbQueues | None = None

    @property
    def uri(self) -> str:
        return self._pieces.uri

    # -- Controller Memory Buffer ------------------------------------------------------------------

    async def open_cmb(self) -> ControllerMemory:
        """See Regions.cmb()."""
        if self._cmb is not None and self._cmb.is_open:
            return self._cmb
        pieces = self._pieces
        if not pieces.cap.cmbs:
            raise ConfigurationError(f"{self.uri} has no Controller Memory Buffer that can be addressed (CAP.CMBS)")
        memory = pieces.memory
        assert memory is not None
        location, size = await self._show_cmb()
        if not (size.rds and size.wds) or not size.nbytes:
            raise ConfigurationError(
                f"{self.uri}: its Controller Memory Buffer of {size.nbytes} bytes is not for data in both directions "
                f"(CMBSZ.RDS {size.rds:d}, WDS {size.wds:d})"
            )
        start = self.queues.layout.nbytes if self.queues is not None else 0
        if start >= size.nbytes:
            raise ConfigurationError(f"{self.uri}: queues take all {size.nbytes} bytes of its Controller Memory Buffer")
        if memory.in_use(CONTROLLER_ADDRESSES + start, size.nbytes - start):
            raise ConfigurationError(f"{self.uri}: commands still use the Controller Memory Buffer that was closed")
        window = await self._map(location, size, start, size.nbytes - start)
        await self._answer_at()
        self._cmb = _Cmb(window, memory.address_map, start)
        return self._cmb

    async def _map(self, location: Cmbloc, size: Cmbsz, start: int, nbytes: int) -> Mmio:
        if location.bir not in (0, *_BARS):
            raise DeviceError(f"{self.uri}: the Controller Memory Buffer is in BAR {location.bir} (CMBLOC.BIR)")
        offset = location.ofst * size.unit + start
        return await in_thread(self._pieces.device.map_bar, location.bir, offset, nbytes)

    async def open_queues(self, which: CmbQueuesOption, *, entries: int, n_queues: int) -> CmbQueues:
        """The places for I/O queues; at the bring-up and after each reset, before queues are
        created.

        ConfigurationError if the buffer isn't for them, or data are where they would be;
        DeviceError if it can't be mapped, or doesn't answer at its address.
        """
        before, self.queues = self.queues, None
        if not self._pieces.cap.cmbs:
            raise ConfigurationError(f"{self.uri} has no Controller Memory Buffer that can be addressed (CAP.CMBS)")
        location, size = await self._show_cmb()
        layout = CmbLayout.of(location, size, CONTROLLER_ADDRESSES, entries=entries, n_queues=n_queues, which=which)
        memory = self._pieces.memory
        assert memory is not None
        if before is not None and before.layout == layout:
            found = before
        else:
            used = self._cmb is not None and self._cmb.is_open and self._cmb.start < layout.nbytes
            if used or memory.in_use(CONTROLLER_ADDRESSES, layout.nbytes):
                raise ConfigurationError(f"{self.uri}: its Controller Memory Buffer has data where queues would be")
            found = CmbQueues(layout, await self._map(location, size, 0, layout.nbytes))
        await self._answer_at()
        self.queues = found
        return found

    async def _show_cmb(self) -> tuple[Cmbloc, Cmbsz]:
        registers = self._pieces.registers
        control = Cmbmsc.from_int(await registers.read64(Register.CMBMSC))
        if not control.cre:
            await registers.write64(Register.CMBMSC, Cmbmsc(cre=True).to_int())
        location = Cmbloc.from_int(await registers.read32(Register.CMBLOC))
        return location, Cmbsz.from_int(await registers.read32(Register.CMBSZ))

    async def _answer_at(self) -> None:
        """The address first: with CMSE it must be valid (3.1.3.16)."""
        registers = self._pieces.registers
        wanted = Cmbmsc(cre=True, cmse=True, cba=CONTROLLER_ADDRESSES >> 12)
        await registers.write64(Register.CMBMSC, wanted.to_int())
        if Cmbsts.from_int(await registers.read32(Register.CMBSTS)).cbai:
            await registers.write64(Register.CMBMSC, Cmbmsc(cre=True).to_int())
            raise DeviceError(f"{self.uri}: the controller refuses {CONTROLLER_ADDRESSES:#x} as its address (CMBSTS)")

    async def enable_again(self) -> None:
        """After a reset, before a command is sent again. Raises what a register access raises, and
        DeviceError; then without() follows.
        """
        if self._cmb is not None and self._cmb.is_open:
            await self._show_cmb()
            await self._answer_at()
        if self._pmr is not None and self._pmr.is_open:
            await self._enable_pmr(self._pmr._capabilities)

    def without(self) -> str:
        """The controller doesn't answer at its address any more."""
        if self._cmb is not None:
            self._cmb.close()
        return "its own memory is not used for data"

    def adopt_queues(self, queues: CmbQueues) -> None:
        """A predecessor's, at the places where the controller knows them."""
        self.queues = queues

    # -- Persistent Memory Region ------------------------------------------------------------------

    async def open_pmr(self, *, healthy: bool = True) -> PersistentMemory:
        """See Regions.pmr()."""
        if self._pmr is not None and self._pmr.is_open:
            return self._pmr
        pieces = self._pieces
        if not pieces.cap.pmrs:
            raise ConfigurationError(f"{self.uri} has no Persistent Memory Region (CAP.PMRS)")
        registers = pieces.registers
        capabilities = Pmrcap.from_int(await registers.read32(Register.PMRCAP))
        if capabilities.bir not in _BARS:
            raise DeviceError(f"{self.uri}: the Persistent Memory Region is in BAR {capabilities.bir} (PMRCAP.BIR)")
        await self._enable_pmr(capabilities)
        health = _health(await self.pmr_status(), self.uri)
        if healthy and health is not PmrHealth.NORMAL:
            raise DeviceError(f"{self.uri}: the Persistent Memory Region is not healthy: {health.name.lower()}")
        window = await in_thread(pieces.device.map_bar, capabilities.bir, 0, None)
        self._pmr = _Pmr(self, window, capabilities, health)
        self._pmr.elasticity_nbytes = Pmrebs.from_int(await registers.read32(Register.PMREBS)).nbytes
        self._pmr.bytes_per_second = Pmrswtp.from_int(await registers.read32(Register.PMRSWTP)).bytes_per_second
        return self._pmr

    async def pmr_status(self) -> Pmrsts:
        return Pmrsts.from_int(await self._pieces.registers.read32(Register.PMRSTS))

    async def _enable_pmr(self, capabilities: Pmrcap) -> None:
        """PMRCTL.EN=1, then PMRSTS.NRDY must become 0 within PMRCAP.PMRTO."""
        registers = self._pieces.registers
        await registers.write32(Register.PMRCTL, 1)
        loop = asyncio.get_running_loop()
        seconds = max(capabilities.timeout_seconds, _SHORTEST_WAIT)
        limit, pause = loop.time() + seconds, 0.0005
        while (await self.pmr_status()).nrdy:
            if loop.time() >= limit:
                raise ControllerTimeout(f"{self.uri}: PMRSTS.NRDY=0 after PMRCTL.EN=1 took longer than {seconds:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.02)

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """With the controller. Views that the application keeps stay valid memory. Nothing else
        keeps a mapping, which would keep VFIO's device open.
        """
        self.queues = None
        for memory in (self._cmb, self._pmr):
            if memory is not None:
                memory.close()


def _health(status: Pmrsts, uri: str) -> PmrHealth:
    error: NvmeError | None = None
    if status.nrdy:
        error = DeviceError(f"{uri}: the Persistent Memory Region is not ready any more (PMRSTS.NRDY)")
    elif status.err:
        error = DeviceError(f"{uri}: the Persistent Memory Region reports error {status.err:#x} (PMRSTS.ERR)")
    if error is not None:
        raise error
    try:
        return PmrHealth(status.hsts)
    except ValueError:
        raise DeviceError(f"{uri}: the Persistent Memory Region has the reserved health {status.hsts}") from None
