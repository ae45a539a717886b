"""The successor's half: going on with a controller that runs, from its bundle.

    prepare   the pool and the saved state, without the device: may be done while the predecessor
        still works
    connect   the device, and whether it is the one that was saved, in the state that was saved
    commit    memory, queue pairs, namespaces, the predecessor's commands; the drain barrier stands

Until commit has checked everything nothing is changed, neither at the controller nor in the pool,
so a refusal leaves both as they were. No Identify command is sent, no queue is created and CC is
not written.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from typing import Any, Literal, Unpack

import attrs

from nvme_async.device import Device, DeviceIds, parse_uri, resume_device
from nvme_async.dma import DmaBuffer, Pool
from nvme_async.driver.lifecycle import State as Stage
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.options import Options, TakeOverOptions
from nvme_async.driver.pcie.memory import DeviceMemory, let_go
from nvme_async.driver.pcie.registers import Registers
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.errors import ConfigurationError, ControllerGone, InvalidSavedState, RestoreRefused
from nvme_async.keepalive import manifest, reclaim
from nvme_async.keepalive import state as saved
from nvme_async.keepalive.adopted import Adopted
from nvme_async.keepalive.bundle import Bundle, duplicates
from nvme_async.keepalive.cleanup import PredecessorCleanup
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.descriptors import mixed_up
from nvme_async.keepalive.manifest import Manifest
from nvme_async.keepalive.ownership import Ownership
from nvme_async.keepalive.phases import Phases
from nvme_async.keepalive.state import NamespaceState, QueueState, State
from nvme_async.native import _hotpath
from nvme_async.runtime import late
from nvme_async.runtime.limits import shortage
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.identify import (
    IdentifyController,
    IdentifyControllerNvm,
    IdentifyNamespace,
    NamespaceDescriptors,
)
from nvme_async.spec.identity import ControllerIdentity, NamespaceIdentity
from nvme_async.spec.opcodes import Feature
from nvme_async.spec.registers import Cap, Csts, Vs

log = logging.getLogger("nvme_async")
Policy = Literal["refuse", "fresh"]

_ARRIVED_TOLD = 8
"""Completions of a queue that are logged one by one."""

# A harmless command for each kind of queue: see ext/hotpath/adopt.h.
_SETTLE_ADMIN = commands.get_features(Feature.NUMBER_OF_QUEUES).pack()


async def restore(bundle: Bundle, *, policy: Policy = "refuse", **options: Unpack[TakeOverOptions]) -> Controller:
    """Goes on with the running controller that `bundle` stands for. The bundle stays the caller's;
    what is needed of it is duplicated.

    options: as for nvme_async.open(); those not given are the predecessor's. keepalive=False, or
        policy="fresh" where a live restore isn't
    possible: the controller is reset first, then the predecessor's memory is freed, then the
        controller is brought up afresh; `adopted.lost`
    says which commands were out.
    Returns at once; new I/O waits until the predecessor's has completed (`controller.adopted`).

    Raises RestoreRefused with the reason, the controller left as it was; ConfigurationError for
    options; ControllerError when the fresh bring-up fails.
    """
    if policy not in ("refuse", "fresh"):
        raise ConfigurationError(f"policy is {policy!r}, neither 'refuse' nor 'fresh'")
    given: dict[str, Any] = {**options}
    if options.get("keepalive", True) is False:
        return await reclaim.reclaim(bundle, given, "keepalive is off in the new process")
    try:
        restoration = Restoration(bundle.duplicate(), given)
    except OSError as error:
        raise RestoreRefused(f"{bundle.uri}: {shortage(error) or error}") from error
    try:
        return await restoration.run()
    except RestoreRefused as refused:
        if policy == "refuse" or "pool" not in bundle.descriptors:
            raise
        log.warning("%s: %s; brought up afresh", bundle.uri, refused)
        return await reclaim.reclaim(bundle, given, str(refused))


def _merge(state: State, given: dict[str, Any]) -> Options:
    known = {field.name for field in attrs.fields(Options)}
    return Options.of(
        {name: value for name, value in state.options.items() if name in known} | given | {"keepalive": True}
    )


class Restoration:
    """One attempt. Owner of `bundle` until run() or commit() is over, or abort()."""

    def __init__(self, bundle: Bundle, options: dict[str, Any]) -> None:
        self._bundle = bundle
        self._given = options
        self.uri = bundle.uri
        self.pool: Pool | None = None
        self.device: Device | None = None
        self.state: State = None  # type: ignore[assignment]  # known after prepare()
        self.phases = Phases(bundle.uri)
        self.touched = False
        """Has commit begun to change something? Then only a reset helps if it fails."""
        self._body = b""
        self._found: tuple[int, int] = (0, 0)
        self._identify: IdentifyController | None = None
        self._identified = b""
        self._namespaces: dict[bytes, IdentifyNamespace] = {}

    async def run(self) -> Controller:
        """All of it."""
        try:
            self.prepare()
            await self.connect()
            controller = await self.commit()
        except BaseException as error:
            self.abort()
            raise self.refusal(error) from error
        return controller

    def refusal(self, error: BaseException) -> BaseException:
        """What to raise for what went wrong: RestoreRefused where nothing was changed."""
        if self.touched:
            return error
        if isinstance(error, (InvalidSavedState, _hotpath.QueueStateError, ControllerGone)):
            return RestoreRefused(f"{self.uri}: {error}")
        missing = shortage(error)
        return RestoreRefused(f"{self.uri}: {missing}") if missing else error

    def abort(self) -> None:
        """Drops what was taken up; the controller and the pool stay as they are."""
        pool, self.pool = self.pool, None
        if pool is not None and not pool.detached and not pool.closed:
            pool.detach()
        device, self.device = self.device, None
        if device is not None:
            device.detach()
        if pool is not None:
            let_go([pool])
        self._bundle.close()

    def _refuse(self, why: str) -> RestoreRefused:
        return RestoreRefused(f"{self.uri}: {why}")

    # -- prepare -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Maps the pool and reads what was saved. No device is needed, and nothing is changed."""
        with self.phases.of("attach"):
            self._prepare()

    def heard(self, go: Any) -> None:
        """The predecessor's word, and how long its own part took."""
        if not isinstance(go, dict):
            return
        told = go.get("phases")
        for name, seconds in told.items() if isinstance(told, dict) else ():
            if name in ("suspend", "write") and isinstance(seconds, (int, float)):
                self.phases.add(name, float(seconds))
        if isinstance(go.get("frozen"), (int, float)):
            self.phases.add("pass", max(0.0, time.monotonic() - float(go["frozen"])))

    def _prepare(self) -> None:
        fd = self._bundle.descriptors.get("pool")
        if fd is None:
            raise self._refuse("the private pool is missing: there is no descriptor named pool beside the controller's")
        self.pool = Pool.attach(fd)
        self._read(self.pool)

    def _read(self, pool: Pool) -> None:
        offset, sequence, body = manifest.find(pool)
        self._found = (offset, sequence)
        if body != self._body:
            self._understand(pool, body)
        if self._has_checksums:
            pool.verify()

    @property
    def _has_checksums(self) -> bool:
        """False: the last that wrote into the pool is of a release that knew none."""
        return self.state.format >= saved.CHECKSUMS

    def _understand(self, pool: Pool, body: bytes) -> None:
        self.state, self._body = saved.decode(body), body
        state = self.state
        if state.pool_id != pool.id:
            raise self._refuse(f"the saved state is about pool {state.pool_id}, this is pool {pool.id}")
        if parse_uri(state.uri) != parse_uri(self.uri):
            raise self._refuse(f"the saved state is about {state.uri}")
        mixed = mixed_up(self._bundle.descriptors, state.descriptors)
        if mixed is not None:
            raise self._refuse(f"descriptor {mixed} of the bundle is another's than the one that was saved")
        if state.phase != "live":
            raise self._refuse(f"the predecessor (pid {state.pid}) ended with its controller {state.phase}")
        if not state.queues or state.queues[0].qid != 0:
            raise self._refuse("the saved state has no admin queue")
        if self._identify is None or state.identify != self._identified:
            self._identify, self._identified = IdentifyController.decode(state.identify), state.identify
        identify = self._identify
        if state.sharing and "sharing.stop" not in self._bundle.descriptors:
            raise self._refuse("the controller is shared, and the descriptor sharing.stop is missing")
        for name, said, page in (
            ("serial", state.device.serial, identify.sn),
            ("model", state.device.model, identify.mn),
            ("firmware", state.device.firmware, identify.fr),
        ):
            if said != page:
                raise self._refuse(
                    f"the saved state is of two drives: {name} {said!r}, and {page!r} in its Identify data"
                )
        for namespace in state.namespaces:
            if namespace.identify not in self._namespaces:
                self._namespaces[namespace.identify] = IdentifyNamespace.decode(namespace.identify)

    # -- connect -----------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Takes the device up and compares it with what was saved: ids, registers, and that it
        runs.
        """
        with self.phases.of("attach"):
            await self._connect()

    async def _connect(self) -> None:
        state = self.state
        fds = duplicates(self._bundle.part("device."))
        device, registers = await in_thread(self._resume, fds)
        ids = state.device
        # Saved by a release that didn't look for it: then it tells nothing.
        serial_number = ids.serial_number if state.format >= 2 else device.ids.serial_number
        expected = DeviceIds(
            ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem, ids.class_code, ids.revision, serial_number
        )
        if device.ids != expected:
            raise self._refuse(f"another device is there: {device.ids}, saved was {expected}")
        self._check_registers(registers.pop("csts"), registers)

    def _resume(self, fds: dict[str, int]) -> tuple[Device, dict[str, int]]:
        """The device, and how it is set up. In a thread: it may be messages, and one trip is enough
        for all.
        """
        self.device = device = resume_device(self.uri, fds, self.state.device_state)
        _ = device.gone_fd  # may need a descriptor of its own, and must not lack it once something was changed
        return device, Registers(device).read_all()

    def _check_registers(self, csts: int, registers: dict[str, int]) -> None:
        if csts == 0xFFFF_FFFF:
            raise self._refuse("registers read all-ones, the device is gone")
        status = Csts.from_int(csts)
        if not status.rdy or not registers["cc"] & 1:
            raise self._refuse(f"the controller was found disabled (CC {registers['cc']:#x}, CSTS {csts:#x})")
        if status.cfs:
            raise self._refuse(f"the controller has failed (CSTS.CFS, CSTS {csts:#x})")
        for name, value in registers.items():
            was = getattr(self.state.registers, name)
            if value != was:
                raise self._refuse(
                    f"{name.upper()} reads {value:#x}, saved was {was:#x}: another controller, or other limits"
                )

    # -- commit ------------------------------------------------------------------------------------

    async def commit(self) -> Controller:
        """Takes the controller over. The predecessor touches it no more."""
        pool, device = self.pool, self.device
        assert pool is not None
        with self.phases.of("verify"):
            pool.refresh()
            self._read(pool)
        if device is None:
            await self.connect()
            device = self.device
        assert device is not None
        state = self.state
        transport = PcieTransport(device)
        transport.cap, transport.vs = Cap.from_int(state.registers.cap), Vs.from_int(state.registers.vs)
        controller = Controller(transport, _merge(state, self._given))
        controller.registers.programmed = attrs.asdict(state.registers, filter=lambda field, _: field.name != "extra")
        assert self._identify is not None
        controller.identify = self._identify
        controller.identity = ControllerIdentity.of(self._identify, device.ids)
        if state.identify_nvm is not None:
            controller.identify_nvm = IdentifyControllerNvm.decode(state.identify_nvm)
        controller.decision = state.decision
        self._vectors(controller)
        try:
            buffer = pool.claim(self._found[0])
            with self.phases.of("verify"):
                queues = self._queues(controller, pool)
            # From here on the pool and the rings are changed.
            self.touched = True
            if not self._has_checksums:
                pool.seal()
            controller.lifecycle.to(Stage.READY)
            self._namespaces_of(controller)
            with self.phases.of("adopt"):
                events = self._adopt(controller, queues)
            controller.cleanup = PredecessorCleanup(controller, controller.adopted, state)
            controller.cleanup.begin(verify=self._in_doubt(controller))
            controller._keep(Manifest(pool, buffer, self._found[1], self._body), state)
            controller.listener.start(events)
            transport.watch(controller._on_gone)
        except BaseException:
            pool.detach()
            if controller.queues.lender is not None:
                controller.queues.lender.forget()
            for queue in controller.queues.all():
                queue.stop_listening()
                _hotpath.hand_over(
                    queue.hot, RestoreRefused("the restore failed"), RestoreRefused("the restore failed")
                )
            controller.queues.maker.close_vectors()
            raise
        self.pool = self.device = None
        self._bundle.close()
        self._taken(controller)
        return controller

    def _go_on_sharing(self, controller: Controller) -> None:
        """Workers have queues of their own, and notice nothing. Nothing is changed yet; they are answered once the
        controller has been taken over.
        """
        fd = self._bundle.descriptors.get("sharing.stop")
        if self.state.sharing and fd is not None:
            late.call("resume sharing", controller, self.state.sharing, os.dup(fd))

    def _taken(self, controller: Controller) -> None:
        phases = controller.phases = self.phases
        phases.record("pass", "attach", "verify", "adopt")
        log.info("%s: taken over: %s", self.uri, phases)
        if not controller.adopted.draining:
            phases.add("drain", 0.0)
            phases.record("drain")

    def _vectors(self, controller: Controller) -> None:
        fds = self._bundle.part("irq.")
        missing = [vector for vector in range(self.state.vectors) if str(vector) not in fds]
        if missing:
            raise self._refuse(f"the eventfds of vectors {missing} are missing")
        mine = duplicates({str(vector): fds[str(vector)] for vector in range(self.state.vectors)})
        controller.queues.maker.adopt_vectors(list(mine.values()))

    def _queues(self, controller: Controller, pool: Pool) -> list[LoopQueue]:
        """Objects for the queue pairs, checked, and still without any effect."""
        state, queues = self.state, controller.queues
        memory = DeviceMemory(
            controller.device,
            pool_bytes=controller.options.pool_bytes,
            hugepages=controller.options.hugepages,
            adopt=pool,
        )
        memory.in_use = queues.uses
        memory.inherit([(registration.iova, registration.nbytes) for registration in state.registrations])
        controller.pcie.memory = memory
        queues.begin_restored(
            limit=state.queue_limit,
            max_transfer=state.max_transfer,
            used=[queue.qid for queue in [*state.queues, *state.unsettled]],
            shadow=None
            if state.shadow_offset is None
            else self._claim(pool, state.shadow_offset, "the shadow doorbells"),
        )
        ownership = Ownership(pool.slots(), state.registrations)
        found = [self._queue(controller, pool, description, ownership) for description in state.queues]
        admin = found[0]
        if (admin.hot.sq_iova, admin.hot.cq_iova) != (state.registers.asq, state.registers.acq):
            raise self._refuse("the controller's admin queue isn't where the saved state has it")
        self._go_on_sharing(controller)
        return found

    def _claim(self, pool: Pool, offset: int, what: str) -> DmaBuffer:
        try:
            return pool.claim(offset)
        except ValueError as error:
            raise self._refuse(f"the memory of {what} isn't in the pool: {error}") from None

    def _queue(self, controller: Controller, pool: Pool, description: QueueState, ownership: Ownership) -> LoopQueue:
        qid, queues = description.qid, controller.queues
        memory = self._claim(pool, description.offset, f"queue {qid}")
        facts = _hotpath.check_queue(memory, qid)
        stable = (description.entries, description.vector, description.interrupts)
        if (facts["entries"], facts["vector"], facts["interrupts"]) != stable:
            raise self._refuse(
                f"queue {qid} has {facts['entries']} entries and vector {facts['vector']} in the pool "
                f"(interrupts {'on' if facts['interrupts'] else 'off'}), others were saved"
            )
        if description.vector >= self.state.vectors:
            raise self._refuse(f"queue {qid} uses vector {description.vector}, of {self.state.vectors}")
        try:
            queue = queues.maker.wrap(memory, facts, description.max_transfer, controller.loop, attach=True)
        except ValueError as error:
            raise self._refuse(f"queue {qid}: {error}") from None
        queue.worker = description.worker
        queues.attach(queue)
        if description.shadow:
            queues.maker.use_shadow(queue.hot)
        try:
            found = _hotpath.look_at_queue(queue.hot, sums=self._has_checksums)
            pieces = ownership.pieces(qid, found)
            self._tell_arrived(qid, found["arrived"])
        except _hotpath.QueueStateError as error:
            raise self._refuse(f"queue {qid}: {error}") from None
        bounce = queues.maker.bounce_of(qid)
        for slot, count, inside in pieces:
            bounce.add_chunk(pool.claim(slot.offset), slot.tag, count, inside)
        return queue

    def _tell_arrived(self, qid: int, arrived: list[tuple[int, int, int, int]]) -> None:
        for head, phase, cid, status in arrived[:_ARRIVED_TOLD]:
            log.info(
                "%s: queue %d: completion at head %d, phase %d, command id %#x, status %#x arrived while no driver "
                "was looking",
                self.uri,
                qid,
                head,
                phase,
                cid,
                status,
            )
        if len(arrived) > _ARRIVED_TOLD:
            log.info("%s: queue %d: and %d more", self.uri, qid, len(arrived) - _ARRIVED_TOLD)

    def _namespaces_of(self, controller: Controller) -> None:
        for description in self.state.namespaces:
            namespace = Namespace(controller, description.nsid)
            identify = self._namespaces[description.identify]
            namespace._update(identify, NamespaceIdentity.of(identify, self._descriptors(description)))
            controller.namespaces[description.nsid] = namespace

    @staticmethod
    def _descriptors(description: NamespaceState) -> NamespaceDescriptors:
        try:
            return NamespaceDescriptors(uuid=uuid.UUID(description.uuid) if description.uuid else None)
        except ValueError:
            return NamespaceDescriptors()

    def _in_doubt(self, controller: Controller) -> bool:
        """May the namespaces be others than was saved? The predecessor says so, or a command of its
        that changes them is still out.
        """
        return self.state.unverified or any(
            controller.effects.of(Command.unpack(command.sqe, admin=True))
            for command in controller.adopted
            if command.qid == 0
        )

    def _adopt(self, controller: Controller, queues: list[LoopQueue]) -> list[_hotpath.Request]:
        """The predecessor's commands become ours; the admin queue first, whose completions nobody
        has looked at. Returns its event requests.
        """
        events: list[_hotpath.Request] = []
        adopted = controller.adopted
        settle_io = commands.flush(min(controller.namespaces)).pack() if controller.namespaces else None
        for queue in queues:
            found, own, requests = _hotpath.adopt(
                queue.hot,
                Adopted,
                adopted._finished,
                settle_io if queue.qid else _SETTLE_ADMIN,
                sums=self._has_checksums,
            )
            adopted._add(found, own)
            events += requests
        for queue in queues:
            controller.queues.listen(queue)
            queue.hot.reap()
            queue.watch()
        controller.queues.admin.hot.hold(False)
        if self._in_doubt(controller):
            log.info("%s: new I/O waits until the namespaces were read again", controller.uri)
        elif adopted.draining:
            log.info("%s: new I/O waits for %d commands of the predecessor", controller.uri, len(adopted._out))
            began = time.perf_counter()

            def drained() -> None:
                controller.queues.lift("drain")
                self.phases.add("drain", time.perf_counter() - began)
                self.phases.record("drain")
                log.info("%s: the predecessor's commands are over: %s", controller.uri, self.phases)

            adopted.on_drained = drained
        else:
            controller.queues.lift("drain")
        controller.queues.first_restored(controller.loop)
        return events
