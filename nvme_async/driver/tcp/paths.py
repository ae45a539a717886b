"""One path to a subsystem: a controller behind one address, and which namespaces it gives access to
(Asymmetric Namespace Access, Base 2.1, 8.1.1).

A path is opened again whenever it is lost, for as long as the subsystem is open. On its home loop,
but for choices, which any loop makes from what is stored here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from nvme_async.driver.controller import Controller
from nvme_async.driver.events import Event
from nvme_async.driver.lifecycle import Lifecycle, State
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.options import Options
from nvme_async.driver.tcp.address import Address
from nvme_async.driver.tcp.transport import FIRST_PAUSE, TcpTransport
from nvme_async.driver.transport import system_errors
from nvme_async.errors import ControllerReplaced, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.completion import AsyncEventType, NoticeEvent
from nvme_async.spec.identity import ControllerIdentity, NamespaceIdentity
from nvme_async.spec.logs import AnaLog, AnaState
from nvme_async.spec.opcodes import LogPage

log: logging.Logger = logging.getLogger("nvme_async")

_MAX_LOG = 1 << 20
_AGAIN = 0.2
"""Seconds until an ANA log that could not be read is read again."""
_CMIC_ANA = 1 << 3
_ANA_CHANGE = (AsyncEventType.NOTICE, NoticeEvent.ASYMMETRIC_NAMESPACE_ACCESS_CHANGE)
WORDS = {
    AnaState.OPTIMIZED: "optimized",
    AnaState.NON_OPTIMIZED: "non-optimized",
    AnaState.INACCESSIBLE: "inaccessible",
    AnaState.PERSISTENT_LOSS: "persistent-loss",
    AnaState.CHANGE: "change",
}
"""The kernel's words for the states."""


class PathController(Controller):
    """One path's controller. on_change: called when its state may have changed."""

    def __init__(self, transport: TcpTransport, options: Options, on_change: Callable[[], None]) -> None:
        self.on_change = on_change
        super().__init__(transport, options)

    def _changed(self, *, strictly: bool = False) -> None:
        self.on_change()

    def _became_unusable(self) -> None:
        self.on_change()

    def abandon(self) -> None:
        """Without a loop: closes everything, and counts as closed."""
        self._drop_device()
        self.lifecycle: Lifecycle = Lifecycle(self.uri)


class Path:
    """Attributes:
    uri, address: where its controller is.
    controller: the present one; None while there is none.
    trouble: why there was none the last time.
    failovers: commands that were sent again on another path. commands: those sent here, in total.
    anatt: seconds that a group may stay in the state change; 0: no limit.
    """

    failovers: int
    commands: int

    def __init__(
        self, address: Address, options: Options, *, on_change: Callable[[], None], on_event: Callable[[Event], None]
    ) -> None:
        self.address = address
        self.uri: str = f"tcp:{address}"
        self.controller: PathController | None = None
        self.trouble = ""
        self.failovers = self.commands = 0
        self.anatt = 0.0
        self._options = options
        self._on_change = on_change
        self._on_event = on_event
        self._groups: dict[int, AnaState] = {}
        self._group_of: dict[int, int] = {}  # by nsid
        self._read_at = -1  # how many resets there had been when the ANA log was read
        self._refused: set[int] = set()  # groups that refused a command since then
        self._changing: dict[int, float] = {}  # {group: since when it is in the state change}
        self._checked: dict[int, Namespace] = {}
        self._kick = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # -- choices, from any loop --------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Does its controller take commands?"""
        controller = self.controller
        return controller is not None and controller.state is State.READY and self._read_at == controller.resets

    def namespace(self, nsid: int, identity: NamespaceIdentity) -> Namespace | None:
        """The namespace as this path has it; None if it has none, or another one with that nsid."""
        controller = self.controller
        found = controller.namespaces.get(nsid) if controller is not None else None
        if found is None or found._gone is not None:
            return None
        if self._checked.get(nsid) is not found:
            if identity.is_other(found.identity):
                self.trouble = f"namespace {nsid} is another one here: {found.identity}, not {identity}"
                return None
            self._checked[nsid] = found
        return found

    def state_of(self, nsid: int) -> AnaState:
        """Of the group that the namespace is in."""
        if not self._groups:
            return AnaState.OPTIMIZED
        group = self._group_of.get(nsid, 0)
        if group in self._refused:
            return AnaState.CHANGE
        return self._groups.get(group, AnaState.NON_OPTIMIZED)

    def refused(self, nsid: int) -> None:
        """A command ended with the status of an ANA state: the log is read again before another
        goes to this group (8.1.1). From any loop.
        """
        controller = self.controller
        if controller is not None and self._groups and not controller.loop.is_closed():
            self._refused.add(self._group_of.get(nsid, 0))
            controller.loop.call_soon_threadsafe(self._kick.set)

    # -- opening and closing -----------------------------------------------------------------------

    async def open(self, known: ControllerIdentity | None) -> PathController:
        """Connects. known: the subsystem's identity; ControllerReplaced if this is another one."""
        with system_errors(self.uri):
            transport = TcpTransport(self.address, self._options, fails_over=True)
            controller = PathController(transport, self._options, self._controller_changed)
            await controller.bring_up()
        try:
            found = controller.identity
            differences = (
                known.differences(found, connected_anew=True) if known is not None and found is not None else ""
            )
            if differences:
                raise ControllerReplaced(f"{self.uri}: another subsystem responds: {differences}")
            self._read_at = -1
            self._checked.clear()
            self.controller = controller
            await self._read_ana()
        except BaseException:
            self.controller = None
            await controller.close()
            raise
        self.trouble = ""
        self._on_change()
        return controller

    def start(self, known: Callable[[], ControllerIdentity | None]) -> None:
        """From now on it is kept open, until close()."""
        self._tasks = [
            asyncio.create_task(self._keep_open(known), name=f"{self.uri} path"),
            asyncio.create_task(self._keep_up_to_date(), name=f"{self.uri} ANA"),
        ]

    async def close(self) -> None:
        """May be repeated."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        controller, self.controller = self.controller, None
        if controller is not None:
            await controller.close()

    def _controller_changed(self) -> None:
        controller = self.controller
        if controller is None:
            return
        if controller.state is State.READY and self._read_at != controller.resets:
            self._kick.set()
        elif controller.state is not State.READY:
            self._on_change()

    async def _keep_open(self, known: Callable[[], ControllerIdentity | None]) -> None:
        pause = FIRST_PAUSE
        while True:
            controller = self.controller
            try:
                if controller is None:
                    controller = await self.open(known())
                    log.info("%s: the path is open", self.uri)
                pause = FIRST_PAUSE
                async for event in controller.events():
                    self._heard(event)
                self.trouble = str(controller.failure or f"{self.uri}: the controller is {controller.state}")
            except NvmeError as error:
                if str(error) != self.trouble:
                    log.warning("%s: %s", self.uri, error)
                self.trouble = str(error)
            lost, self.controller = self.controller, None
            self._on_change()
            if lost is not None:
                await lost.close()
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._options.reconnect_delay)

    def _heard(self, event: Event) -> None:
        its = event.event
        if its is not None and (its.type, its.info) == _ANA_CHANGE:
            self._kick.set()
        if event.kind != "controller-event":
            self._kick.set()  # another namespace, in a group that may be new
            self._on_change()
        self._on_event(event)

    # -- ANA ---------------------------------------------------------------------------------------

    async def _keep_up_to_date(self) -> None:
        # An event may have come between the first reading and the subscription.
        self._kick.set()
        while True:
            try:
                async with asyncio.timeout(self._until_anatt()):
                    await self._kick.wait()
            except TimeoutError:
                self._anatt_is_over()
                continue
            self._kick.clear()
            controller = self.controller
            if controller is None or controller.state is not State.READY:
                continue
            try:
                await self._read_ana()
            except (NvmeError, ValueError) as error:
                log.warning("%s: the ANA log can't be read: %s", self.uri, error)
                await asyncio.sleep(_AGAIN)
                self._kick.set()
            self._on_change()

    async def _read_ana(self) -> None:
        controller = self.controller
        assert controller is not None
        resets, identify = controller.resets, controller.identify
        if not identify.cmic & _CMIC_ANA:
            self._groups = {}
            self._read_at = resets
            return
        nbytes = 16 + 32 * max(1, identify.nanagrpid) + 4 * max(identify.mnan, identify.nn)
        nbytes = min(nbytes, _MAX_LOG, controller.transport.max_transfer) + 3 & ~3
        completion = await controller._submit_admin(commands.get_log_page(LogPage.ANA, nbytes))
        assert completion.data is not None
        page = AnaLog.decode(completion.data)
        group_of = {nsid: group.grpid for group in page.groups for nsid in group.nsids}
        for nsid, namespace in list(controller.namespaces.items()):
            group_of.setdefault(nsid, namespace.identify.anagrpid)
        before = self._groups
        self._groups, self._group_of = {group.grpid: group.state for group in page.groups}, group_of
        self._refused = set()
        self._read_at = resets
        now = time.monotonic()
        changing = [group for group, state in self._groups.items() if state is AnaState.CHANGE]
        self._changing = {group: self._changing.get(group, now) for group in changing}
        self.anatt = self.anatt or float(identify.anatt)
        if before != self._groups:
            states = ", ".join(f"{group} {WORDS[state]}" for group, state in sorted(self._groups.items()))
            log.info("%s: ANA groups: %s", self.uri, states)

    def _until_anatt(self) -> float | None:
        """Seconds until a transition has taken too long."""
        if not self._changing or not self.anatt:
            return None
        return max(0.0, min(self._changing.values()) + self.anatt - time.monotonic())

    def _anatt_is_over(self) -> None:
        """A transition takes longer than the controller reports (ANATT): it is reset."""
        controller = self.controller
        self._changing.clear()
        if controller is not None:
            controller._request_reset(f"an ANA transition took longer than {self.anatt:g} s (ANATT)")

    def inspect(self) -> dict[str, Any]:
        """From any thread."""
        controller = self.controller
        state = str(controller.state) if controller is not None else "connecting"
        return {
            "uri": self.uri,
            "state": "connecting" if state == "ready" and not self.ready else state,
            "cntlid": controller.identify.cntlid if controller is not None else None,
            "ana": {str(group): WORDS[state] for group, state in sorted(self._groups.items())},
            "resets": controller.resets if controller is not None else 0,
            "commands": self.commands,
            "failovers": self.failovers,
            "trouble": self.trouble or None,
        }
