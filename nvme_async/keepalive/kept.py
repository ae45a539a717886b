"""A controller that another process can continue with: the saved state, and memory that outlives
this process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from nvme_async.device import Device
from nvme_async.dma import DmaBuffer, Slot
from nvme_async.driver.controller import Controller as DriverController
from nvme_async.driver.options import Options
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.pcie.pooled_transport import pooled
from nvme_async.driver.pcie.queue_set import PcieQueueSet
from nvme_async.driver.pcie.registers import Registers
from nvme_async.driver.pcie.transport import PcieTransport, pcie
from nvme_async.driver.transport import Transport
from nvme_async.errors import ConfigurationError, QueueShutdown
from nvme_async.keepalive import cleanup
from nvme_async.keepalive.adopted import AdoptedCommands
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.config import Decision
from nvme_async.keepalive.depositor import Depositor
from nvme_async.keepalive.manifest import Manifest, Recorder, descriptors_of
from nvme_async.keepalive.phases import Phases
from nvme_async.keepalive.state import Phase, State


class KeptController(DriverController):
    """The driver's controller, with its hooks implemented. On the controller's home loop, unless
    said otherwise.

    Attributes:
        adopted: the commands that a predecessor left; empty after a fresh bring-up.
        settings, decision: whether keepalive is on and why, and the same as text; None and empty
            before the decision.
        on_bundle_changed: called on the home loop when bundle() has changed: after the bring-up,
            and when there is none any more because the controller was closed, has failed or was
            handed over.
        recorder: keeps the saved state up to date, with options.keepalive.
        depositor: keeps a copy of the descriptors with a custodian.
        phases: the durations of the last save's or restore's phases (nvme_async.keepalive.phases).
    """

    decision: str

    def __init__(self, transport: Transport, options: Options) -> None:
        super().__init__(transport, options)
        self.adopted: AdoptedCommands = AdoptedCommands()
        self.decision = ""
        self.on_bundle_changed: Callable[[], None] | None = None
        self.cleanup: cleanup.PredecessorCleanup | None = None
        self.recorder: Recorder | None = None
        self.depositor: Depositor | None = None
        self.settings: Decision | None = None
        self.phases: Phases | None = None
        self._renewal: asyncio.TimerHandle | None = None

    # -- over PCIe: ConfigurationError for controllers on other transports -------------------------

    @property
    def pcie(self) -> PcieTransport:
        """The transport of a PCI function."""
        return pcie(self.transport)

    @property
    def device(self) -> Device:
        """The PCI function."""
        return self.pcie.device

    @property
    def registers(self) -> Registers:
        """Its registers."""
        return self.pcie.registers

    @property
    def memory(self) -> DeviceMemory | None:
        """The controller's memory; None before the bring-up. A worker ("shared:") has some too."""
        return pooled(self.transport).memory

    @property
    def queues(self) -> PcieQueueSet:
        """Its queue pairs."""
        return self.pcie.queues

    # -- keepalive ---------------------------------------------------------------------------------

    @property
    def keepalive(self) -> bool:
        """Can a successor take the running controller over?"""
        return self.recorder is not None

    def _keep(self, manifest: Manifest | None = None, state: State | None = None) -> None:
        """From now on the saved state is kept up to date: in `manifest`, which held a
        predecessor's `state`, or in a new one.
        """
        assert self.memory is not None
        self.recorder = Recorder(self, manifest or Manifest(self.memory.pools[0]), self.decision)
        if state is None:
            self.recorder.record()
        else:
            # The predecessor's state is still valid for a restore, so callers whose I/O waits are
            # served first.
            self.recorder.inherit(state)
            self.loop.call_soon(self.loop.call_soon, self.recorder.accept)
            self._renewal = self.loop.call_later(cleanup.AFTER, self._renew)
        self.memory.on_mapped = self._changed
        self._bundle_changed()

    def _renew(self) -> None:
        self._renewal = None
        if self.recorder is not None:
            self.recorder.renew()

    async def _at_rest(self, seconds: float) -> None:
        """Returns once what follows a takeover is done, after which the saved state changes no more
        by itself; or after so many seconds.
        """
        if self._renewal is not None:
            self._renewal.cancel()
            self._renew()
        if self.cleanup is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.cleanup.wait()

    def _bundle_changed(self) -> None:
        """Notifies the owner of the deposited copy."""
        if self.on_bundle_changed is not None:
            self.on_bundle_changed()

    def _decided(self, decision: Decision) -> None:
        """The decision about keepalive, for inspect() and the saved state."""
        self.settings, self.decision = decision, str(decision)
        if self.recorder is not None:
            self.recorder.decision = self.decision
        self._changed()

    def bundle(self) -> Bundle:
        """The bundle for a successor in its present state, with duplicated descriptors; the
        caller closes it.

        Raises QueueShutdown if there is nothing to take over (any more), ConfigurationError if the
        controller was opened without keepalive.
        """
        recorder, memory = self.recorder, self.memory
        if recorder is None or memory is None:
            if self.state in ("ready", "resetting", "new"):
                raise ConfigurationError(
                    f"{self.uri} was opened without keepalive: it cannot be taken over while it runs"
                )
            raise QueueShutdown(f"{self.uri}: the controller is {self.state}, it can't be taken over")
        return Bundle.of(self.uri, recorder.manifest.body, {"pool": memory.pools[0].fd} | descriptors_of(self))

    # -- hooks of the driver -----------------------------------------------------------------------

    def _brought_up(self) -> None:
        if self.options.keepalive:
            self._keep()

    def _changed(self, *, strictly: bool = False) -> None:
        if self.recorder is None:
            return
        # During a reset no other process can continue with the controller, regardless of changes.
        phase: Phase = "resetting" if self.state == "resetting" else "live"
        self.recorder.record(phase) if strictly else self.recorder.note(phase)

    def _became_unusable(self) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.note("closing" if self.state == "closing" else "failed")
            self._bundle_changed()

    async def _stop_background_work(self) -> None:
        if self.cleanup is not None:
            await self.cleanup.stop()

    def _cancel_background_work(self) -> None:
        if self.cleanup is not None:
            self.cleanup.cancel()

    async def _was_closed(self) -> None:
        if self.depositor is not None:
            await self.depositor.end()

    def _inspect_hooks(self) -> dict[str, Any]:
        return {
            "keepalive": {
                "on": self.keepalive,
                "decision": self.decision,
                "settings": self.settings.inspect() if self.settings else None,
                "saved": self.recorder.manifest.sequence if self.recorder else 0,
                "phases": dict(self.phases.seconds) if self.phases else {},
                "adopted": self.adopted.inspect(),
            }
        }

    def _drop_device(self) -> None:
        if self.depositor is None:
            super()._drop_device()
            return
        # The custodian has its own descriptors, so the controller keeps running for the next
        # process: its memory stays as it is.
        for pool in self.memory.pools if self.memory is not None else ():
            pool.detach()
        self.device.detach()
        self.queues.maker.close_vectors()

    # -- a predecessor's memory --------------------------------------------------------------------

    def unclaimed(self) -> list[Slot]:
        """A predecessor's memory from alloc() that this process has not claimed yet, by offset;
        tags as given to alloc().
        """
        slots = [slot for pool in (self.memory.pools if self.memory is not None else ()) for slot in pool.slots()]
        return [slot for slot in slots if slot.owner == "application" and slot.state == "pending-restore"]

    def claim(self, slot: Slot) -> DmaBuffer:
        """Claims one of unclaimed(): from now on as if this process had allocated it.

        Don't free it before the commands in `adopted` that use it are finished.
        """
        if self.memory is None or not self.memory.pools:
            raise self._not_here()
        return self.memory.pools[0].claim(slot.offset)

    async def validate_restore(self) -> list[Slot]:
        """Call it after claiming everything; returns the unclaimed slots. Their pages are not
        reused until the controller's next bring-up.

        Waits until the predecessor's commands have ended and its half-made queue pairs are deleted.
        """
        if self.cleanup is not None:
            await self.cleanup.wait()
        if self.memory is None or not self.memory.pools:
            raise self._not_here()
        return cleanup.validate(self.uri, self.memory.clients)
