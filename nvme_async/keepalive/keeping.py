"""What a Controller has for whoever comes after it: the saved state, and the ways to hand the
controller on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from nvme_async.dma import DmaBuffer, Slot
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.errors import HandedOver, NvmeError, QueueShutdown
from nvme_async.keepalive import execute, handing, settle
from nvme_async.keepalive.adopted import AdoptedCommands
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.manifest import Manifest, Recorder
from nvme_async.keepalive.state import Phase, State
from nvme_async.runtime.tasks import finish

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller
    from nvme_async.keepalive.config import Decision
    from nvme_async.keepalive.deposit import Depositor
    from nvme_async.keepalive.handover import Offer

T = TypeVar("T")


class Keeping:
    """The part of Controller that concerns its successors.

    Attributes:
        adopted: the commands that a predecessor left; empty after a fresh bring-up.
        settings, decision: whether keepalive runs and why, and the same in words; None and empty
            before it was decided.
        on_bundle_changed: called on the home loop when bundle() has become something else: after
            the bring-up, and when there is none any more because the controller was closed, failed
            or was handed over.
    """

    uri: str
    state: str
    memory: DeviceMemory | None
    _forked: NvmeError | None

    def __init__(self) -> None:
        self.adopted = AdoptedCommands()
        self.decision = ""
        self.on_bundle_changed: Callable[[], None] | None = None
        self.settlement: settle.Settlement | None = None  # tidying up after a predecessor
        self.recorder: Recorder | None = None  # keeps the saved state, with options.keepalive
        self.depositor: Depositor | None = None  # deposits it with a keeper
        self.settings: Decision | None = None

    async def at_home(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError

    @property
    def keepalive(self) -> bool:
        """Can a successor take the running controller over?"""
        return self.recorder is not None

    def keep(self, manifest: Manifest | None = None, state: State | None = None) -> None:
        """From here on the saved state is kept up to date: in `manifest`, which held a
        predecessor's `state`, or in a new one.
        """
        assert self.memory is not None
        self.recorder = Recorder(self._this, manifest or Manifest(self.memory.pools[0]))
        if state is None:
            self.recorder.record()
        else:
            # What the predecessor wrote is still right in all that a restore goes by: whose I/O
            # waits now comes first.
            self.recorder.inherit(state)
            self._this.loop.call_later(0.001, self.note)
        self.memory.on_mapped = self.note
        self.bundle_changed()

    def note(self, phase: Phase = "live", *, strictly: bool = False) -> None:
        """Something changed that a successor must know. strictly: OutOfDmaMemory if it can't be
            written down; else a warning.

        Whatever changes during a reset, nobody can go on with the controller before its end.
        """
        if self.state == "resetting":
            phase = "resetting"
        if self.recorder is not None:
            self.recorder.record(phase) if strictly else self.recorder.note(phase)

    def stop_keeping(self, phase: Phase) -> None:
        """No successor can go on from here."""
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.note(phase)
            self.bundle_changed()

    def bundle_changed(self) -> None:
        """Tells whoever keeps the bundle."""
        if self.on_bundle_changed is not None:
            self.on_bundle_changed()

    @property
    def _this(self) -> Controller:
        return cast("Controller", self)

    def decided(self, decision: Decision) -> None:
        """What was decided about keepalive, for inspect() and the saved state."""
        self.settings, self.decision = decision, str(decision)
        self.note()

    # -- handing on --------------------------------------------------------------------------------

    def bundle(self) -> Bundle:
        """What a successor needs, as it is now, with descriptors of its own; the caller's to close.
        On the home loop.

        QueueShutdown when there is nothing to take over (any more); ConfigurationError when the
        controller was opened without keepalive.
        """
        return handing.bundle(self._this)

    async def save(self) -> Bundle:
        """Lets go of the running controller: its queues, and the commands that are out, stay as
        they are for whoever restores the bundle.

        Waiters end with HandedOver. Doesn't wait for the commands that are out. If it fails, the
        exception says why and service goes on. Raises as bundle() does; ControllerError when the
        controller has failed; ControllerTimeout when a loop that uses it is stuck.
        """
        return await self.at_home(lambda: finish(lambda: handing.save(self._this)))

    async def exec(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> NoReturn:
        """Becomes another program, under the same process id, while the controller runs on; the
        program opens the same URI. Doesn't return.

        argv: as for os.execvp(). env: its environment, by default this one's. See
            nvme_async.keepalive.execute for what is raised, and for
        several controllers.
        """
        await self.at_home(lambda: execute.execute([self], argv, env))
        raise AssertionError("execve() has returned")

    def handover(self, where: str | os.PathLike[str] | socket.socket) -> Offer:
        """Offers the running controller to a successor that calls nvme_async.take_over(where):

            async with controller.handover("/run/drive.sock") as offer:
                await offer          # until a successor has taken over

        where: the path of a Unix socket to listen on, or a connected one. Service goes on until the
            successor is ready, and again if it
        fails. Leaving the block before anybody came withdraws the offer. A controller without
        keepalive is shut down cleanly once somebody came, who then brings it up afresh.
        """
        from nvme_async.keepalive.handover import Offer

        return Offer(self._this, where)

    def not_here(self) -> NvmeError:
        """Why it takes no commands any more."""
        if self._forked is not None:
            return self._forked
        error = HandedOver if self.state == "handed over" else QueueShutdown
        return error(f"{self.uri}: the controller is {self.state}")

    # -- a predecessor's memory --------------------------------------------------------------------

    def unclaimed(self) -> list[Slot]:
        """A predecessor's memory that its alloc() gave out and nobody in this process has claimed,
        by offset; tags as given to alloc().
        """
        slots = [slot for pool in (self.memory.pools if self.memory is not None else ()) for slot in pool.slots()]
        return [slot for slot in slots if slot.owner == "application" and slot.state == "pending-restore"]

    def claim(self, slot: Slot) -> DmaBuffer:
        """One of unclaimed(): from here on as if this process had allocated it. Don't free it
        before the commands in `adopted` that use it are finished.
        """
        if self.memory is None or not self.memory.pools:
            raise self.not_here()
        return self.memory.pools[0].claim(slot.offset)

    async def validate_restore(self) -> list[Slot]:
        """After everything was claimed: what nobody wanted. Its pages stay out of use until the
            controller's next bring-up. Waits until the
        predecessor's commands are over and its half-made queue pairs are gone.
        """
        if self.settlement is not None:
            await self.settlement.wait()
        if self.memory is None or not self.memory.pools:
            raise self.not_here()
        return settle.validate(self._this)

    def _inspect_keepalive(self) -> dict[str, Any]:
        return {
            "on": self.keepalive,
            "decision": self.decision,
            "settings": self.settings.inspect() if self.settings else None,
            "saved": self.recorder.manifest.sequence if self.recorder else 0,
            "adopted": self.adopted.inspect(),
        }
