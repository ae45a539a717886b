"""The PCIe transport: a PCI function's registers, queue pairs in DMA memory, interrupts as
eventfds.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from nvme_async.device import Device, DeviceIds
from nvme_async.device.quirks import Quirk, Quirks, quirks_of
from nvme_async.driver import command_sets
from nvme_async.driver.options import DEFAULT_POOL
from nvme_async.driver.own_memory import ControllerMemory, PersistentMemory
from nvme_async.driver.pcie.host_memory import HostMemory
from nvme_async.driver.pcie.keep_alive import PcieKeepAlive
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.pcie.own_memory import OwnMemory
from nvme_async.driver.pcie.pooled_transport import PooledTransport
from nvme_async.driver.pcie.queue_set import PcieQueueSet
from nvme_async.driver.pcie.registers import Registers, check_supported
from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.steps import Degraded, Step
from nvme_async.driver.transport import Owner, Transport
from nvme_async.errors import (
    ConfigurationError,
    ControllerError,
    ControllerFatal,
    ControllerTimeout,
    DeviceTimeout,
    NvmeError,
)
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec import commands
from nvme_async.spec.identify import Ctratt
from nvme_async.spec.opcodes import Feature
from nvme_async.spec.registers import WIDE, WITH_MSIX, Cap, Register, Vs

log: logging.Logger = logging.getLogger("nvme_async")
T = TypeVar("T")

_DOORBELL_BUFFERS = "Doorbell Buffer Config"
_CMB_QUEUES = "queues in the Controller Memory Buffer"


class PcieTransport(PooledTransport):
    """Owner of the device, and of everything that the controller can access in this process's
    memory.

    Attributes:
        device: the PCI function.
        registers: its properties, awaitable.
        memory: pools and mappings, after the connect steps; None before.
        host_memory: what the controller uses as its own. own_memory: what it has of its own.
        queues: the queue pairs.
    """

    kind = "pcie"
    queues: PcieQueueSet

    def __init__(self, device: Device) -> None:
        self.device = device
        self.uri: str = device.uri
        self.registers: Registers = Registers(device)
        self.cap: Cap = Cap()
        self.vs: Vs = Vs()
        self.memory: DeviceMemory | None = None
        self._pausing = asyncio.Lock()
        self._ignore_pause = False  # the present one has taken too long
        self._watched = -1  # the descriptor that shows the device's disappearance

    def attach(self, owner: Owner) -> None:
        self._owner = owner
        self.quirks: Quirks = quirks_of(self.device.ids, override=owner.options.quirks)
        self.registers.quirks = self.quirks
        self.queues = PcieQueueSet(owner, self)
        self.host_memory: HostMemory = HostMemory(owner)
        self.own_memory: OwnMemory = OwnMemory(self)
        self.keep_alive: PcieKeepAlive = PcieKeepAlive(owner)

    @property
    def passed_device(self) -> Device:
        return self.device

    async def call(self, function: Callable[[], T]) -> T:
        """A call into the device layer: on the loop if that is only memory and ioctls, in a
        thread if it is messages.
        """
        return function() if self.device.direct else await in_thread(function)

    # -- bring-up and reset ------------------------------------------------------------------------

    def open_steps(self) -> Sequence[Step]:
        steps = [Step("registers", self._read_registers, repeatable=False)]
        if self._owner.options.always_flr:
            # The device layer does nothing where the function has no reset.
            steps.insert(0, Step("function level reset", self._reset_function, lambda: "the device stays as it was"))
        return steps

    def connect_steps(self, degraded: Degraded, error: NvmeError) -> Sequence[Step]:
        return [
            Step("CC.EN=0", self._disable, repeatable=False),
            # The controller has released everything: in-flight commands may be resent from the same
            # pages.
            Step("queue memory", lambda: self._prepare(error), repeatable=False),
            Step("CC.EN=1", lambda: self._enable(degraded), repeatable=False),
        ]

    def queue_steps(self, degraded: Degraded, lost: set[str]) -> Sequence[Step]:
        return [
            Step("the controller's own memory", self.own_memory.enable_again, self.own_memory.without),
            Step("Number of Queues", self.queues.negotiate, self.queues.assume),
            *self._cmb_steps(),
            Step(_DOORBELL_BUFFERS, lambda: self._shadow_doorbells(degraded, _DOORBELL_BUFFERS in lost)),
            Step("I/O queue pairs", lambda: self.queues.create_all(degraded)),
            Step("Host Memory Buffer", self._give_host_memory, self.host_memory.without),
            Step("Host Identifier", self._identify_host, lambda: "the controller doesn't recognize this host"),
            *self._keep_alive_steps(),
        ]

    def _cmb_steps(self) -> Sequence[Step]:
        which = self._owner.options.cmb_queues
        maker = self.queues.maker
        maker.cmb = None
        if which == "off":
            self.own_memory.queues = None
            return []

        async def open_queues() -> None:
            entries = self.queues.entries
            maker.cmb = await self.own_memory.open_queues(which, entries=entries, n_queues=self.queues.limit)

        return [Step(_CMB_QUEUES, open_queues, lambda: "they are in memory of the host")]

    def _keep_alive_steps(self) -> Sequence[Step]:
        self.keep_alive.inherit(0)
        if not self._owner.options.pcie_keep_alive_tmo:
            return []
        return [Step("Keep Alive Timer", self.keep_alive.set, lambda: "the controller expects no Keep Alive")]

    async def _reset_function(self) -> None:
        await self.call(self.device.reset)

    @property
    def readable(self) -> Sequence[Register]:
        return WITH_MSIX

    async def read_property(self, register: Register) -> int:
        if register not in self.readable:
            self._cannot(f"register {register.name} for hosts that use MSI-X")
        read = self.registers.read64 if register in WIDE else self.registers.read32
        return await read(register)

    async def _read_registers(self) -> None:
        await self.registers.settle()
        self.cap = await self.registers.cap()
        self.vs = await self.registers.vs()
        check_supported(self.cap, self.uri, self.device.bar0_nbytes)

    async def _disable(self) -> None:
        """CC.EN=0, or the device's own reset if that doesn't help (3.7.2)."""
        try:
            await self.registers.disable(self.cap)
        except DeviceTimeout:
            raise  # its reset would be a message as well
        except ControllerTimeout:
            await self.call(self.device.reset)
            await self.call(self.queues.maker.set_vectors_again)
            await self.registers.disable(self.cap)

    async def _identify_host(self) -> None:
        """If the option names this host (Base 2.1, 5.1.25.2.8). A reset ends it."""
        owner = self._owner
        if not owner.options.hostid:
            return
        if Ctratt.HOST_ID_128 not in owner.identify.attributes:
            raise ControllerError(f"{self.uri}: the controller has no host identifiers of 128 bits")
        identifier = uuid.UUID(owner.options.hostid).bytes
        await owner._submit_admin(commands.set_features(Feature.HOST_IDENTIFIER, 1), identifier)

    async def _give_host_memory(self) -> None:
        assert self.memory is not None
        await self.host_memory.give(self.memory)

    async def _prepare(self, error: NvmeError) -> None:
        self.host_memory.was_reset()
        if self.memory is None:
            await in_thread(self._make_memory)
            await self.call(self.queues.maker.open_vectors)
        else:
            await self.queues.restart(RETRYABLE, error)

    def _make_memory(self) -> None:
        options = self._owner.options
        self.memory = DeviceMemory(
            self.device,
            pool_bytes=options.pool_bytes,
            hugepages=options.hugepages,
            numa=options.numa,
            fixed=options.keepalive,
            limit=options.memory_limit,
            flexible=options.pool_bytes == DEFAULT_POOL,
        )
        self.memory.in_use = self.queues.uses

    async def _enable(self, degraded: Degraded) -> None:
        await self.call(self.device.enable_bus_mastering)
        admin = self.queues.prepare_admin()
        for all_command_sets in command_sets.to_try(self.cap):
            try:
                await self.registers.enable(
                    self.cap,
                    entries=admin.hot.entries,
                    asq=admin.hot.sq_iova,
                    acq=admin.hot.cq_iova,
                    all_command_sets=all_command_sets,
                )
                break
            except (ControllerFatal, ControllerTimeout) as error:
                if not all_command_sets or not self.cap.nvm_command_set:
                    raise
                degraded.add("CC.CSS=110b", error, "the NVM command set alone")
                await self._disable()
        admin.silence(False)

    @property
    def ids(self) -> DeviceIds:
        return self.device.ids

    @property
    def all_command_sets(self) -> bool:
        return self.registers.all_command_sets

    async def _shadow_doorbells(self, degraded: Degraded, lost: bool) -> None:
        """A refusal is handled where the command is sent. A lost command is not optional: it is
        unknown whether the controller still reads the doorbells, so the bring-up restarts
        without it.
        """
        offered = self._owner.identify.oacs & 1 << 8 and Quirk.NO_DOORBELL_BUFFER not in self._owner.quirks
        if not self._owner.options.shadow_doorbells or not offered:
            return
        if self.queues.lender is not None or self.queues.lent:
            # It would apply to lent queue pairs too, and its memory belongs to this process.
            await self.queues.maker.drop_shadow(self.queues.io_queues())
            return
        if lost:
            await self.queues.maker.drop_shadow(self.queues.io_queues())
            degraded.add(_DOORBELL_BUFFERS, "no answer", "doorbells are registers")
            return
        if refusal := await self.queues.maker.configure_shadow(self.queues.io_queues()):
            degraded.add(_DOORBELL_BUFFERS, refusal, "doorbells are registers")
        else:
            degraded.clear(_DOORBELL_BUFFERS)

    # -- health ------------------------------------------------------------------------------------

    async def lost(self) -> str:
        return await self.registers.lost()

    async def sit_out(self, seconds: float) -> bool:
        """CSTS.PP (Base 2.0, 3.1.3.6)."""
        async with self._pausing:
            if not (await self.registers.csts()).pp:
                self._ignore_pause = False
                return False
            if self._ignore_pause:
                return False
            log.warning("%s: the controller paused processing (CSTS.PP); the limit is %g s", self.uri, seconds)
            await self.queues.pause(True)
            try:
                await self.registers.wait(lambda csts: not csts.pp, seconds, "CSTS.PP=0", fatal=True)
            except ControllerTimeout as error:
                log.warning("%s", error)
                self._ignore_pause = True
                return False
            finally:
                await self.queues.pause(False)
            return True

    async def has_failed(self) -> bool:
        return bool((await self.registers.csts()).cfs)

    @property
    def trouble(self) -> str | None:
        return self.device.trouble

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """And the controller watches this process, if the option asks for Keep Alives."""
        loop = self._owner.loop
        if on_gone is None:
            self.keep_alive.stop()
        else:
            self.keep_alive.start()
        if on_gone is not None and self.device.gone_fd >= 0:
            self._watched = self.device.gone_fd
            loop.add_reader(self._watched, on_gone)
        elif on_gone is None and self._watched >= 0:
            if not loop.is_closed():
                loop.remove_reader(self._watched)
            self._watched = -1

    # -- the end -----------------------------------------------------------------------------------

    async def shut_down(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                if not self._owner.fused:  # the shutdown itself deletes them
                    await self.queues.delete_all()
                    await self.host_memory.take_back()
        except (NvmeError, TimeoutError) as error:
            log.warning("%s: deleting the I/O queues, returning memory: %s", self.uri, str(error) or "no answer")
        self.device.timeout = min(self.device.timeout, seconds)
        try:
            await self.registers.shut_down(seconds)
        except DeviceTimeout:
            # Its registers don't answer any more, so its mappings must be removed first.
            await self.close_device()
            raise

    async def release(self, reason: NvmeError, *, keep: bool = False) -> PcieTransport | None:
        quiet = False
        try:
            # From here on a doorbell is an error at best, and a store into an unmapped page once
            # the device is closed.
            await self.queues.silence()
        except Exception as error:
            log.warning("%s: %s", self.uri, error)
        try:
            await self.registers.disable(self.cap)
            quiet = True
        except Exception as error:
            log.warning("%s: %s", self.uri, error)
        steps: list[Callable[[], Awaitable[None]]] = [lambda: self.queues.release(reason), self._release_memory]
        if not quiet:
            # Its mappings go with the device; from then on the IOMMU (or the peer's missing
            # mapping) stops it.
            steps.insert(0, self.close_device)
        elif keep:
            steps.append(self._without_interrupts)
        else:
            steps.append(self.close_device)
        for step in steps:
            try:
                await step()
            except Exception:
                # The rest must be released nevertheless.
                log.exception("%s: closing failed", self.uri)
                if keep and quiet:
                    quiet = False
                    steps.append(self.close_device)
        self.queues.maker.close_vectors()
        return PcieTransport(self.device) if keep and quiet else None

    async def cut_off(self) -> None:
        await self.close_device()

    async def close_device(self) -> None:
        await self.call(self.device.close)

    async def _without_interrupts(self) -> None:
        await self.call(lambda: self.device.set_interrupts(()))

    async def open_cmb(self) -> ControllerMemory:
        return await self.own_memory.open_cmb()

    async def open_pmr(self, *, healthy: bool) -> PersistentMemory:
        return await self.own_memory.open_pmr(healthy=healthy)

    async def _release_memory(self) -> None:
        self.host_memory.free()
        self.own_memory.close()
        self.queues.maker.cmb = None
        if self.memory is not None:
            await in_thread(self.memory.close)

    def drop(self) -> None:
        try:
            self.device.close()
        finally:
            self.queues.maker.close_vectors()

    def abandon(self) -> None:
        self.device.close()

    async def reset_function(self) -> None:
        """A function level reset, with no controller attached. On failure the device is closed."""
        try:
            await in_thread(self.device.reset)
        except BaseException:
            self.device.close()
            raise

    def inspect(self) -> dict[str, Any]:
        return {
            **self.queues.inspect(),
            "memory": self.memory.inspect() if self.memory else None,
            "host_memory": self.host_memory.inspect(),
            "device": self.device.inspect(),
        }


def pcie(transport: Transport) -> PcieTransport:
    """`transport`, if it is one over PCIe. ConfigurationError for any other."""
    if not isinstance(transport, PcieTransport):
        raise ConfigurationError(f"{transport.uri}: a controller reached over {transport.kind} has no PCI function")
    return transport
