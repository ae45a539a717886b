"""The objects that a successor builds before its predecessor releases the controller: the
controller object, its queue pairs and namespaces, all without any effect, from a saved state.

    build    claims memory and makes objects; changes nothing in the pool or at the controller
    check    the predecessor is frozen: the rings, and the memory of each command in flight
    adopt    from now on this process drives the controller

build() may run while the predecessor works; its result is valid as long as the saved state is
unchanged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import attrs

from nvme_async.device import Device
from nvme_async.dma import DmaBuffer, Pool
from nvme_async.driver.lifecycle import FINAL
from nvme_async.driver.lifecycle import State as Stage
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.pcie.cmb_queues import CmbQueues
from nvme_async.driver.pcie.memory import DeviceMemory
from nvme_async.driver.pcie.pooled_transport import pooled
from nvme_async.driver.pcie.restored_queues import RestoredQueues
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.errors import RestoreRefused
from nvme_async.keepalive import state as saved
from nvme_async.keepalive.adopted import Adopted
from nvme_async.keepalive.bundle import Bundle, duplicates
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.inheritance import merge
from nvme_async.keepalive.ownership import Ownership
from nvme_async.keepalive.phases import Phases
from nvme_async.keepalive.state import NamespaceState, QueueState, State
from nvme_async.native import _hotpath
from nvme_async.runtime import late
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.identify import (
    IdentifyController,
    IdentifyControllerNvm,
    IdentifyNamespace,
    NamespaceDescriptors,
    Sgls,
)
from nvme_async.spec.identity import ControllerIdentity, NamespaceIdentity
from nvme_async.spec.opcodes import Feature
from nvme_async.spec.registers import Cap, Vs

log: logging.Logger = logging.getLogger("nvme_async")

_MAX_LOGGED = 8
"""Completions of a queue that are logged one by one."""

# A harmless command for each kind of queue: see ext/hotpath/adopt.h.
_SETTLE_ADMIN = commands.get_features(Feature.NUMBER_OF_QUEUES).pack()


class Successor:
    """Of one controller, on the loop that becomes its home.

    pool, device: the caller's until adopt() has returned. cmb: queues in the controller's memory.
    manifest: the slot of the saved state.
    """

    def __init__(
        self, uri: str, pool: Pool, device: Device, state: State, phases: Phases, cmb: CmbQueues | None = None
    ) -> None:
        self.uri = uri
        self.pool = pool
        self._device = device
        self._cmb = cmb
        self.state = state
        self._phases = phases
        self.controller: Controller = None  # type: ignore[assignment]  # known after build()
        self.manifest: DmaBuffer = None  # type: ignore[assignment]  # likewise
        self._queues: list[LoopQueue] = []
        self.loops: list[tuple[asyncio.AbstractEventLoop, str]] = []
        """Those that will do I/O, besides the home loop; the names of their threads."""
        self._settle_io: bytes | None = None
        self._admin: list[Adopted] = []  # the predecessor's callers' admin commands

    def _refuse(self, why: str) -> RestoreRefused:
        return RestoreRefused(f"{self.uri}: {why}")

    @property
    def _has_checksums(self) -> bool:
        """False: the last writer of the pool was a release without checksums."""
        return self.state.format >= saved.CHECKSUMS

    # -- build -------------------------------------------------------------------------------------

    def build(
        self,
        bundle: Bundle,
        given: dict[str, Any],
        manifest_at: int,
        identify: IdentifyController,
        namespaces: Mapping[bytes, IdentifyNamespace],
    ) -> None:
        """manifest_at: offset of the saved state's slot. namespaces: their decoded pages. Ends
        with adopt() or drop().
        """
        state = self.state
        transport = PcieTransport(self._device)
        transport.cap, transport.vs = Cap.from_int(state.registers.cap), Vs.from_int(state.registers.vs)
        controller = self.controller = Controller(transport, merge(state, given))
        controller.registers.programmed = attrs.asdict(state.registers, filter=lambda field, _: field.name != "extra")
        controller.identify = identify
        transport.allow_sgl(identify.sgls & 3, metadata=Sgls.METADATA_SGL in identify.sgl_support)
        controller.identity = ControllerIdentity.of(identify, self._device.ids)
        if state.identify_nvm is not None:
            controller.identify_nvm = IdentifyControllerNvm.decode(state.identify_nvm)
        controller.decision = state.decision
        try:
            self._vectors(bundle)
            self.manifest = self.pool.claim(manifest_at)
            self._memory()
            self._queues = [self._queue(description) for description in state.queues]
            admin = self._queues[0]
            if (admin.hot.sq_iova, admin.hot.cq_iova) != (state.registers.asq, state.registers.acq):
                raise self._refuse("the controller's admin queue is not at the address in the saved state")
            for description in state.namespaces:
                namespace = Namespace(controller, description.nsid)
                page = namespaces[description.identify]
                namespace._update(page, NamespaceIdentity.of(page, self._descriptors(description)))
                controller.namespaces[description.nsid] = namespace
            self._choose_settling()
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Lets go of everything; nothing was changed. The pool stays as it is, and this object
        of it is of no more use.
        """
        controller = self.controller
        if controller is None:
            return
        if not self.pool.detached:
            self.pool.detach()
        self._drop_lender()
        failed = RestoreRefused("the restore failed")
        for queue in self._all.all():
            queue.stop_listening()
            _hotpath.hand_over(queue.hot, failed, failed)
        self._all.maker.close_vectors()

    def _drop_lender(self) -> None:
        if self.controller.queues.lender is not None:
            self.controller.queues.lender.forget()

    @property
    def _all(self) -> RestoredQueues:
        return pooled(self.controller.transport).queues

    def _vectors(self, bundle: Bundle) -> None:
        fds = bundle.part("irq.")
        missing = [vector for vector in range(self.state.vectors) if str(vector) not in fds]
        if missing:
            raise self._refuse(f"the eventfds of vectors {missing} are missing")
        mine = duplicates({str(vector): fds[str(vector)] for vector in range(self.state.vectors)})
        self.controller.queues.maker.adopt_vectors(list(mine.values()))

    def _memory(self) -> None:
        state, controller = self.state, self.controller
        queues = controller.queues
        memory = DeviceMemory(
            controller.device,
            pool_bytes=controller.options.pool_bytes,
            hugepages=controller.options.hugepages,
            adopt=self.pool,
        )
        memory.in_use = queues.uses
        memory.inherit([(registration.iova, registration.nbytes) for registration in state.registrations])
        controller.pcie.memory = memory
        controller.pcie.host_memory.adopt(self.pool)
        if self._cmb is not None:
            controller.pcie.own_memory.adopt_queues(self._cmb)
        queues.maker.cmb = self._cmb
        controller.pcie.keep_alive.inherit(float(state.options.get("pcie_keep_alive_tmo") or 0))
        queues.begin_restored(
            limit=state.queue_limit,
            max_transfer=state.max_transfer,
            used=[queue.qid for queue in [*state.queues, *state.unsettled]],
            shadow=None if state.shadow_offset is None else self._claim(state.shadow_offset, "the shadow doorbells"),
        )

    def _claim(self, offset: int, what: str) -> DmaBuffer:
        try:
            return self.pool.claim(offset)
        except ValueError as error:
            raise self._refuse(f"the memory of {what} is not in the pool: {error}") from None

    def _queue(self, description: QueueState) -> LoopQueue:
        qid, controller = description.qid, self.controller
        queues = self._all
        memory = self._claim(description.offset, f"queue {qid}")
        facts = _hotpath.check_queue(memory, qid)
        stable = (description.entries, description.vector, description.interrupts)
        if (facts["entries"], facts["vector"], facts["interrupts"]) != stable:
            raise self._refuse(
                f"queue {qid} has {facts['entries']} entries and vector {facts['vector']} in the pool "
                f"(interrupts {'on' if facts['interrupts'] else 'off'}), unlike the saved state"
            )
        if description.vector >= self.state.vectors:
            raise self._refuse(f"queue {qid} uses vector {description.vector}, but there are {self.state.vectors}")
        try:
            queue = queues.maker.wrap(memory, facts, description.max_transfer, controller.loop, attach=True)
        except ValueError as error:
            raise self._refuse(f"queue {qid}: {error}") from None
        queue.worker = description.worker
        queues.attach(queue)
        if description.cmb:
            if self._cmb is None or not self._cmb.has_room(queue.hot):
                raise self._refuse(f"queue {qid} has no place in the controller's memory, where it should be")
            self._cmb.place(queue.hot, attach=True)
        if description.shadow:
            queues.maker.use_shadow(queue.hot)
        return queue

    @staticmethod
    def _descriptors(description: NamespaceState) -> NamespaceDescriptors:
        try:
            return NamespaceDescriptors(uuid=uuid.UUID(description.uuid) if description.uuid else None)
        except ValueError:
            return NamespaceDescriptors()

    # -- check -------------------------------------------------------------------------------------

    def check(self, bundle: Bundle) -> None:
        """The predecessor touches nothing any more, and the pool's table was read again: is what
        it left sound? Nothing is changed.
        """
        ownership = Ownership(self.pool.slots(), self.state.registrations)
        busy: dict[int, int] = {}
        for queue in self._queues:
            qid = queue.qid
            try:
                found = _hotpath.verify_queue(queue.hot, sums=self._has_checksums)
                pieces = ownership.pieces(qid, found)
            except _hotpath.QueueStateError as error:
                raise self._refuse(f"queue {qid}: {error}") from None
            self._log_arrived(qid, found["arrived"])
            busy[qid] = found["in_flight"] + found["done"]
            if qid == 0 and self.controller.fused:
                self._check_admin_at_rest(found)
            if pieces:
                bounce = self._all.maker.bounce_of(qid)
                for slot, count, inside in pieces:
                    bounce.add_chunk(self.pool.claim(slot.offset), slot.tag, count, inside)
        # The admin queue, then workers with I/O in flight.
        self._queues.sort(key=lambda queue: (queue.qid != 0, -busy[queue.qid]))
        self._go_on_sharing(bundle)

    def _check_admin_at_rest(self, found: dict[str, Any]) -> None:
        """No admin command of a fused controller is out, and none completes, after its bring-up."""
        pending = found["in_flight"] + found["done"] + found["unsent"]
        if pending or found["waiting"] or found["uncertain"]:
            raise self._refuse(
                f"fused mode has {pending} admin commands pending"
                + (", with a completion at the head of the admin queue" if found["waiting"] else "")
            )

    def _go_on_sharing(self, bundle: Bundle) -> None:
        """Workers have their own queues, and notice nothing. Nothing is changed yet; they are
        answered once the controller has been taken over.
        """
        fd = bundle.descriptors.get("sharing.stop")
        if self.state.sharing and fd is not None:
            late.call("resume sharing", self.controller, self.state.sharing, os.dup(fd))

    def _log_arrived(self, qid: int, arrived: list[tuple[int, int, int, int]]) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        for head, phase, cid, status in arrived[:_MAX_LOGGED]:
            log.info(
                "%s: queue %d: completion at head %d, phase %d, command id %#x, status %#x arrived while no driver "
                "was running",
                self.uri,
                qid,
                head,
                phase,
                cid,
                status,
            )
        if len(arrived) > _MAX_LOGGED:
            log.info("%s: queue %d: %d more such completions", self.uri, qid, len(arrived) - _MAX_LOGGED)

    # -- adopt -------------------------------------------------------------------------------------

    def adopt(self) -> list[_hotpath.Request]:
        """The pool and the rings are changed from here on. Returns the predecessor's event
        requests.
        """
        controller = self.controller
        if not self._has_checksums:
            self.pool.seal()
        controller.lifecycle.to(Stage.READY)
        return self._adopt()

    @property
    def in_doubt(self) -> bool:
        """May the namespaces differ from the saved ones? The predecessor says so, or one of its
        commands that changes them is still in flight.
        """
        return self.state.unverified or any(
            self.controller.effects.of(Command.unpack(command.sqe, admin=True)) for command in self._admin
        )

    def _adopt(self) -> list[_hotpath.Request]:
        """The predecessor's commands become ours; the admin queue first, whose completions have
        not been read yet. Returns its event requests.
        """
        controller = self.controller
        events: list[_hotpath.Request] = []
        adopted = controller.adopted
        if self._settle_io is None:
            self._choose_settling()
        for queue in self._queues:
            found, own, requests = _hotpath.adopt(
                queue.hot,
                Adopted,
                adopted._finished,
                self._settle_io if queue.qid else _SETTLE_ADMIN,
                sums=self._has_checksums,
            )
            if queue.qid == 0:
                self._admin = found
            adopted._add(found, own)
            events += requests
            if queue.in_flight:
                queue.watch()
        # What has completed was taken. Interrupts, which stay signalled, may wait until the callers
        # whose I/O waits have sent it, in the event-loop iteration after the next.
        controller.loop.call_soon(controller.loop.call_soon, self._listen)
        self._resume_admin()
        if self.in_doubt:
            log.info("%s: new I/O waits until the namespaces have been read again", controller.uri)
        elif adopted.draining:
            log.info("%s: new I/O waits for %d commands of the predecessor", controller.uri, len(adopted._out))
            adopted.on_drained = self._drain()
        else:
            self._all.lift("drain")
        self._all.first_restored(controller.loop)
        self._all.assign(self.loops)
        if not self._all.held:
            self._await_first_io()
        return events

    def _choose_settling(self) -> None:
        """The harmless command for I/O queue pairs."""
        if self.controller.namespaces:
            self._settle_io = commands.flush(min(self.controller.namespaces)).pack()

    def _resume_admin(self) -> None:
        self.controller.queues.admin.hot.hold(False)

    def _listen(self) -> None:
        """Interrupts are taken from here on, except of queue pairs that another loop has taken
        meanwhile.
        """
        controller = self.controller
        if controller.state in FINAL:
            return
        present = self._all.all()
        for queue in self._queues:
            if queue in present and not queue.closed:
                self._all.listen(queue)
                queue.hot.reap()

    def _drain(self) -> Any:
        """What to call once the last of the predecessor's I/O commands has completed."""
        controller, phases = self.controller, self._phases
        began = time.perf_counter()

        def drained() -> None:
            phases.add("drain", time.perf_counter() - began)
            controller.loop.call_soon(self._all.assign, self.loops)  # not in the midst of a delivery
            self._await_first_io()  # callers' I/O that waits is sent by lift()
            self._all.lift("drain")
            phases.record("drain")
            log.info("%s: the predecessor's commands have ended: %s", controller.uri, phases)

        return drained

    def _await_first_io(self) -> None:
        """Times the first I/O command of this process on the home loop."""
        began, phases = time.monotonic_ns(), self._phases
        queue = self._all.io.get(self.controller.loop)
        if queue is None:
            return

        def first() -> None:
            if "first I/O" not in phases.seconds:
                phases.add("first I/O", (queue.hot.busy_ns - began) / 1e9)
                phases.record("first I/O")

        queue.when_busy(first)
