"""The successor's half: continuing with a running controller from its bundle.

    prepare   the pool and the saved state, without the device: may be done while the predecessor
        still works
    connect   the device, and whether it is the saved one, in the saved state
    build     the objects for memory, queue pairs and namespaces (successor.py)
    commit    the predecessor is frozen: the objects are valid if the saved state is unchanged.
        Rings are checked, and the predecessor's commands adopted; the drain barrier is set

Nothing is changed, neither at the controller nor in the pool, until commit has checked everything,
so a refusal leaves both as they were. No Identify command is sent, no queue is created and CC is
not written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, Literal, Unpack

import attrs

from nvme_async.device import Device, DeviceIds, parse_uri, resume_device
from nvme_async.dma import Pool
from nvme_async.driver.lifecycle import State as Stage
from nvme_async.driver.options import TakeOverOptions
from nvme_async.driver.pcie.cmb_queues import CmbQueues
from nvme_async.driver.pcie.memory import let_go
from nvme_async.driver.pcie.registers import SHOWN, Registers
from nvme_async.errors import (
    ConfigurationError,
    ControllerGone,
    ControllerTimeout,
    InvalidSavedState,
    NvmeError,
    RestoreRefused,
)
from nvme_async.keepalive import manifest, reclaim
from nvme_async.keepalive import state as saved
from nvme_async.keepalive.bundle import Bundle, duplicates
from nvme_async.keepalive.cleanup import PredecessorCleanup
from nvme_async.keepalive.cmb import find_queues, layout_of
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.descriptors import mixed_up
from nvme_async.keepalive.manifest import Manifest
from nvme_async.keepalive.ownership import is_drivers_own
from nvme_async.keepalive.phases import Phases
from nvme_async.keepalive.state import State
from nvme_async.keepalive.successor import Successor
from nvme_async.native import _hotpath
from nvme_async.runtime.limits import shortage
from nvme_async.runtime.loops import in_thread_of
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace
from nvme_async.spec.registers import Csts

log: logging.Logger = logging.getLogger("nvme_async")
Policy = Literal["refuse", "fresh"]

_ACQUAINTANCE = 0.2
"""Seconds for a loop to give its thread's name."""


async def restore(
    bundle: Bundle,
    *,
    policy: Policy = "refuse",
    loops: Iterable[asyncio.AbstractEventLoop] = (),
    **options: Unpack[TakeOverOptions],
) -> Controller:
    """Continues with the running controller of `bundle`. The caller still owns the bundle;
    needed descriptors are duplicated.

    options: as for nvme_async.open(); those not given are the predecessor's, also at a fresh
        bring-up. keepalive=False, or policy="fresh" where a live restore isn't possible: the
        controller is reset first, then the predecessor's memory is freed, then the controller is
        brought up; `adopted.lost` lists the in-flight commands.
    loops: as for nvme_async.take_over().
    Returns at once; new I/O waits until the predecessor's has completed (`controller.adopted`).

    Raises RestoreRefused with the reason, the controller left as it was; ConfigurationError for
    options; ControllerError when the fresh bring-up fails.
    """
    if policy not in ("refuse", "fresh"):
        raise ConfigurationError(f"policy is {policy!r}, must be 'refuse' or 'fresh'")
    given: dict[str, Any] = {**options}
    if options.get("keepalive", True) is False:
        return await reclaim.reclaim(bundle, given, "keepalive is off in the new process")
    try:
        restoration = Restoration(bundle.duplicate(), given)
    except OSError as error:
        raise RestoreRefused(f"{bundle.uri}: {shortage(error) or error}") from error
    try:
        return await restoration.run(loops)
    except RestoreRefused as refused:
        if policy == "refuse" or "pool" not in bundle.descriptors:
            raise
        log.warning("%s: %s; bringing it up afresh", bundle.uri, refused)
        return await reclaim.reclaim(bundle, given, str(refused))


class Restoration:
    """One attempt. Owner of `bundle` until the end of run() or commit(), or abort()."""

    def __init__(self, bundle: Bundle, options: dict[str, Any]) -> None:
        self._bundle = bundle
        self._given = options
        self.uri: str = bundle.uri
        self.pool: Pool | None = None
        self.device: Device | None = None
        self.state: State = None  # type: ignore[assignment]  # known after prepare()
        self.phases: Phases = Phases(bundle.uri)
        self.touched: bool = False
        """Has commit started to change something? Then only a reset helps if it fails."""
        self._body = b""
        self._found: tuple[int, int] = (0, 0)
        self._sequence: int | None = None
        """How often the predecessor had written the saved state, if that is known."""
        self._identify: IdentifyController | None = None
        self._identified = b""
        self._namespaces: dict[bytes, IdentifyNamespace] = {}
        self._successor: Successor | None = None
        self._cmb: CmbQueues | None = None
        self._loops: list[tuple[asyncio.AbstractEventLoop, str]] = []
        self._told = False
        """Were the device's registers read by the predecessor, and not by this process?"""

    async def meet(self, loops: Iterable[asyncio.AbstractEventLoop]) -> None:
        """These will do I/O. One that doesn't run, or is busy, gets its queue pair when it does."""
        home = asyncio.get_running_loop()

        async def ask(loop: asyncio.AbstractEventLoop) -> None:
            with contextlib.suppress(ControllerTimeout):
                name = await in_thread_of(
                    loop,
                    lambda: threading.current_thread().name,
                    timeout=_ACQUAINTANCE,
                    stuck=ControllerTimeout("the loop is busy"),
                )
                self._loops.append((loop, name))

        await asyncio.gather(*(ask(loop) for loop in loops if loop is not home and loop.is_running()))

    async def run(self, loops: Iterable[asyncio.AbstractEventLoop]) -> Controller:
        """All of it."""
        try:
            await self.meet(loops)
            self.prepare()
            await self.connect()
            self.build()
            self._sequence = self._found[1]
            controller = await self.commit()
        except BaseException as error:
            self.abort()
            raise self.refusal(error) from error
        return controller

    def refusal(self, error: BaseException) -> BaseException:
        """The exception for an error: RestoreRefused if nothing was changed."""
        if self.touched:
            return error
        if isinstance(error, (InvalidSavedState, _hotpath.QueueStateError, ControllerGone)):
            return RestoreRefused(f"{self.uri}: {error}")
        missing = shortage(error)
        return RestoreRefused(f"{self.uri}: {missing}") if missing else error

    def abort(self) -> None:
        """Drops everything; the controller and the pool stay as they are."""
        self._drop_successor()
        pool, self.pool = self.pool, None
        if pool is not None and not pool.detached and not pool.closed:
            pool.detach()
        device, self.device = self.device, None
        if device is not None:
            device.detach()
        if pool is not None:
            let_go([pool])
        self._bundle.close()

    def _drop_successor(self) -> None:
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.drop()

    def _refuse(self, why: str) -> RestoreRefused:
        return RestoreRefused(f"{self.uri}: {why}")

    # -- prepare -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Maps the pool and reads the saved state. Needs no device, and changes nothing."""
        with self.phases.of("attach"):
            self._prepare()

    def heard(self, go: Any) -> None:
        """The predecessor's message: how often it has written the saved state, and the durations
        of its own phases.
        """
        if not isinstance(go, dict):
            return
        self._sequence = go.get("sequence")
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
        """False: the last writer of the pool was a release without checksums."""
        return self.state.format >= saved.CHECKSUMS

    def _understand(self, pool: Pool, body: bytes) -> None:
        self.state, self._body = saved.decode(body), body
        state = self.state
        if state.pool_id != pool.id:
            raise self._refuse(f"the saved state belongs to pool {state.pool_id}, not to pool {pool.id}")
        if parse_uri(state.uri) != parse_uri(self.uri):
            raise self._refuse(f"the saved state belongs to {state.uri}")
        mixed = mixed_up(self._bundle.descriptors, state.descriptors)
        if mixed is not None:
            raise self._refuse(f"descriptor {mixed} of the bundle is not the one that was saved")
        if state.phase != "live":
            raise self._refuse(f"when the predecessor (pid {state.pid}) ended, its controller was {state.phase}")
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
        """Opens the device and compares it with the saved state: ids, registers, and that it is
        running.
        """
        with self.phases.of("attach"):
            self._check_device(*await in_thread(self._resume))

    async def connect_told(self, registers: Any) -> None:
        """connect(), while the predecessor still uses the device by messages: by what it has
        read there a moment ago. confirm() follows once it has let go.
        """
        names = [register.name.lower() for register in SHOWN]
        if not isinstance(registers, dict) or not all(isinstance(registers.get(name), int) for name in names):
            raise self._refuse(f"the saved registers are invalid: {registers!r}")
        with self.phases.of("attach"):
            await in_thread(self._resume_quietly)
            self._told = True
            self._check_registers({name: registers[name] for name in names})

    def _resume(self) -> tuple[Device, dict[str, int]]:
        """The device, and its setup. In a thread, because it may be messages; one visit is
        enough for all.
        """
        fds = duplicates(self._bundle.part("device."))
        self.device = device = resume_device(self.uri, fds, self.state.device_state)
        _ = device.gone_fd  # may need a descriptor, and must not lack it once something was changed
        if self.state.cmb is not None:
            self._cmb = find_queues(device, self.state.cmb, self._refuse)
        return device, Registers(device).read_all()

    def _resume_quietly(self) -> None:
        fds = duplicates(self._bundle.part("device."))
        self.device = resume_device(self.uri, fds, self.state.device_state, ids=self._ids)
        _ = self.device.gone_fd

    @property
    def _ids(self) -> DeviceIds:
        """As saved."""
        ids = self.state.device
        return DeviceIds(
            ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem, ids.class_code, ids.revision, ids.serial_number
        )

    def _check_device(self, device: Device, registers: dict[str, int]) -> None:
        expected = self._ids
        if self.state.format < 2:  # by a release that didn't read it: then it isn't compared
            expected = attrs.evolve(expected, serial_number=device.ids.serial_number)
        if device.ids != expected:
            raise self._refuse(f"the device is another one: {device.ids}, not {expected}")
        self._check_registers(registers)

    def _check_registers(self, registers: dict[str, int]) -> None:
        csts = registers["csts"]
        if csts == 0xFFFF_FFFF:
            raise self._refuse("its registers read all ones: the device is gone")
        status = Csts.from_int(csts)
        if not status.rdy or not registers["cc"] & 1:
            raise self._refuse(f"the controller is disabled (CC {registers['cc']:#x}, CSTS {csts:#x})")
        if status.cfs:
            raise self._refuse(f"the controller has failed (CSTS.CFS, CSTS {csts:#x})")
        for name, value in registers.items():
            was = csts if name == "csts" else getattr(self.state.registers, name)
            if value != was:
                raise self._refuse(
                    f"{name.upper()} reads {value:#x}, not {was:#x} as saved: another controller, or other limits"
                )

    # -- build -------------------------------------------------------------------------------------

    def build(self) -> None:
        """Objects for all that was saved. Nothing is changed; the predecessor may still be at
        work.
        """
        assert self.pool is not None
        assert self.device is not None
        assert self._identify is not None
        with self.phases.of("build"):
            cmb, saved_cmb = self._cmb, self.state.cmb
            if saved_cmb is not None and (cmb is None or cmb.layout != layout_of(saved_cmb)):
                raise self._refuse("the saved state has another place for queues in the controller's memory by now")
            self._successor = Successor(self.uri, self.pool, self.device, self.state, self.phases, cmb)
            self._successor.loops = self._loops
            self._successor.build(self._bundle, self._given, self._found[0], self._identify, self._namespaces)

    def populate(self) -> None:
        """Maps the driver's own memory in the pool, which otherwise takes a page fault for each few
        pages while the predecessor stands still.
        """
        assert self.pool is not None
        with self.phases.of("build"):
            self.pool.populate(slot for slot in self.pool.slots() if is_drivers_own(slot.owner))

    def _settle(self, sequence: int | None) -> Successor:
        """What was built, if it is still what was saved last, else built again. sequence: the
        predecessor says that it has written so many times.
        """
        successor, pool = self._successor, self.pool
        assert pool is not None
        if successor is not None and sequence == self._found[1]:
            with memoryview(successor.manifest) as slot:
                if manifest.stands(slot, sequence, self._body):
                    pool.refresh()
                    if self._has_checksums:
                        pool.verify()
                    return successor
        self._drop_successor()
        if successor is not None:
            # What it claimed may not be there any more.
            let_go([pool])
            fd = self._bundle.descriptors["pool"]
            pool = self.pool = Pool.attach(fd)
        else:
            pool.refresh()
        self._read(pool)
        self.build()
        assert self._successor is not None
        return self._successor

    # -- commit ------------------------------------------------------------------------------------

    async def commit(self) -> Controller:
        """Takes the controller over; the predecessor touches it no more. Waits for nothing if the
        device was connected before.
        """
        if self.device is None:
            if self.pool is not None:
                self.pool.refresh()
                self._read(self.pool)
            await self.connect()
        return self._commit()

    def _commit(self) -> Controller:
        with self.phases.of("verify"):
            successor = self._settle(self._sequence)
            successor.check(self._bundle)
        controller = successor.controller
        # From here on the pool and the rings are changed.
        self.touched = True
        with self.phases.of("adopt"):
            events = successor.adopt()
        confirm = self._confirm if self._told else None
        in_doubt = successor.in_doubt
        controller.cleanup = PredecessorCleanup(controller, controller.adopted, self.state)
        controller.cleanup.begin(verify=in_doubt, confirm=confirm)
        controller._keep(Manifest(successor.pool, successor.manifest, self._found[1], self._body), self.state)
        self.pool = self.device = self._successor = None
        self._bundle.close()
        controller.phases = self.phases
        # Callers' I/O comes first.
        controller.loop.call_soon(controller.loop.call_soon, self._taken, controller, events, controller.resets)
        return controller

    async def _confirm(self, controller: Controller) -> None:
        """Reads again, now that the predecessor has released the device, what the predecessor
        reported before. The answer also shows that no reply to the predecessor is pending.
        """
        device = controller.device

        def ask() -> dict[str, int]:
            device.identify_again()
            return Registers(device).read_all()

        try:
            registers = await in_thread(ask)
            if controller.state == Stage.READY:
                self._check_device(device, registers)
        except RestoreRefused as refused:
            controller._fail(refused)
        except NvmeError as error:
            if controller.state != Stage.READY:
                return  # handed on already, reset or closed
            log.warning("%s: querying the device again failed: %s", self.uri, error)

    def _taken(self, controller: Controller, events: list[_hotpath.Request], resets: int) -> None:
        if controller.state == Stage.READY:
            controller.transport.watch(controller._on_gone)
        if controller.state in (Stage.READY, Stage.SAVING) and controller.resets == resets:
            controller.listener.start(events)
        phases = self.phases
        phases.record("pass", "attach", "build", "verify", "adopt")
        log.info("%s: taken over: %s", self.uri, phases)
        if not controller.adopted.draining and "drain" not in phases.seconds:
            phases.add("drain", 0.0)
            phases.record("drain")
