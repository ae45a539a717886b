"""The predecessor's side of a hand-over: offers a running controller until a successor has taken
it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Protocol, Self

from nvme_async.errors import ConfigurationError, ControllerGone, ControllerTimeout, NvmeError, RestoreRefused
from nvme_async.keepalive import saving
from nvme_async.keepalive.bundle import send_bundle
from nvme_async.keepalive.handover_wire import READY_SECONDS, TAKEN_SECONDS, VERSION, Wire, check_peer
from nvme_async.keepalive.inheritance import passed_on
from nvme_async.keepalive.kept import KeptController
from nvme_async.runtime import late
from nvme_async.runtime.sockets import ListeningSocket
from nvme_async.runtime.tasks import finish, in_thread

log: logging.Logger = logging.getLogger("nvme_async")

_SETTLING_SECONDS = 0.1
"""For what this process has to do after its own takeover. A successor builds from the saved state,
and would have to build again if it changed meanwhile.
"""
_SUCCESSOR_FIRST = 0.015
"""Seconds after "taken", before this process ends its waiters and closes its memory. Both take
processors that the successor needs more.
"""


class Passing(Protocol):
    """How a layer above hands over queue pairs that another process lent to this one."""

    async def offer(self, wire: Wire) -> None: ...
    async def commit(self, wire: Wire) -> None: ...


class Offer:
    """The result of controller.handover(): an async context manager; await it inside until a
        successor has taken over.

    Attributes:
        taken: a successor has the controller.
        failures: failed attempts, as exceptions.
    """

    def __init__(self, controller: KeptController, where: str | os.PathLike[str] | socket.socket) -> None:
        self._controller = controller
        self._where = where
        self._task: asyncio.Task[None] | None = None
        self._listening: ListeningSocket | None = None
        self._committing = asyncio.Lock()  # held while a successor may have it
        self._short = False  # does the successor know the structures of handover_wire.py?
        self._went = False  # "go" was sent to a successor beside this process
        self._ends: list[Callable[[], None]] = []
        self._end_at = 0.0  # of the loop's time
        self.failures: list[BaseException] = []
        self.taken: bool = False

    async def __aenter__(self) -> Self:
        name = f"{self._controller.uri} hand-over"
        if isinstance(self._where, socket.socket):
            self._task = asyncio.create_task(self._one(Wire(self._where), again=False), name=name)
        else:
            self._listen(self._where)
            self._task = asyncio.create_task(self._serve(self._where), name=name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        async with self._committing:
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._end()

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        """Waits until a successor has taken over. On a connected socket: raises the reason if
        that fails.
        """
        if self._task is None:
            raise ConfigurationError("an offer must be entered first: async with controller.handover(…) as offer")
        await asyncio.shield(self._task)

    async def _serve(self, path: str | os.PathLike[str]) -> None:
        try:
            while not self.taken:
                sock, _ = await asyncio.get_running_loop().sock_accept((self._listening or self._listen(path)).socket)
                await self._one(Wire(sock), again=True)
        finally:
            self._stop_listening()

    def _listen(self, path: str | os.PathLike[str]) -> ListeningSocket:
        self._listening = ListeningSocket(path)
        self._listening.socket.setblocking(False)
        return self._listening

    def _stop_listening(self) -> None:
        """Before the controller is handed over, because the successor may offer it at the same
        path: the path must be free then, and not be removed later.
        """
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.unlink()

    async def _one(self, wire: Wire, *, again: bool) -> None:
        """Serves one successor. again: others may try if it fails, as long as there is something
        to hand over.
        """
        try:
            # Descriptors of a controller go to this user only, or to root.
            check_peer(wire.socket, "asks for this controller")
            hello = await wire.receive(READY_SECONDS)
            if hello.get("hello") != VERSION:
                await wire.send(withdrawn=f"this release has version {VERSION}")
                raise ConfigurationError(f"the successor has version {hello.get('hello')} of the hand-over")
            if self._controller.keepalive and hello.get("keepalive") is True:
                pid = hello.get("pid")
                self._short = hello.get("short") is True
                await self._live(wire, pid if isinstance(pid, int) and pid > 0 else None)
            elif hello.get("lease") is True and (passing := late.call("pass lease", self._controller)) is not None:
                await self._lease(wire, passing)
            elif self._controller.transport.coexists and hello.get("beside") is True:
                await self._beside(wire)
            else:
                await self._fresh(wire)
        except (NvmeError, OSError) as error:
            self.failures.append(error)
            log.warning("%s: the hand-over failed: %s", self._controller.uri, error)
            if not again or await self._controller.lifecycle.settled() != "ready":
                raise
        finally:
            wire.close()

    async def _fresh(self, wire: Wire) -> None:
        """Without keepalive: shuts down cleanly, and lets the successor bring it up."""
        controller = self._controller
        async with self._committing:
            self._stop_listening()
            await controller.close()
            self.taken = True
            await wire.send(offer="fresh", uri=controller.uri, options=passed_on(controller.options))

    async def _beside(self, wire: Wire) -> None:
        """Without keepalive, and with queues for both: the successor has opened the controller
        before this process stops.
        """
        options = passed_on(self._controller.options)
        await wire.send(offer="beside", uri=self._controller.uri, options=options)
        answer = await wire.receive(READY_SECONDS)
        if "full" in answer:
            log.info("%s: the successor opens it after this process: %s", self._controller.uri, answer["full"])
            async with self._committing:
                await finish(lambda: self._drain(wire))
            await self._fresh(wire)
            return
        if not answer.get("ready"):
            raise RestoreRefused(f"the successor refused: {answer.get('refused', 'no reason given')}")
        async with self._committing:
            self._stop_listening()
            self._went = False
            await finish(lambda: self._pass_on(wire))

    async def _lease(self, wire: Wire, passing: Passing) -> None:
        """A worker's queue pairs, with its commands in flight."""
        await passing.offer(wire)
        answer = await wire.receive(READY_SECONDS)
        if not answer.get("ready"):
            raise RestoreRefused(f"the successor refused: {answer.get('refused', 'no reason given')}")
        async with self._committing:
            self._stop_listening()
            await finish(lambda: passing.commit(wire))
            self.taken = True

    async def _drain(self, wire: Wire) -> None:
        """New I/O waits, and none is in flight: a late write of this process would overtake its
        successor's. Service goes on if that takes too long.
        """
        controller = self._controller
        queues = controller.transport.queues
        seconds = min(controller.options.drain_timeout, READY_SECONDS / 2)
        await queues.hold("handover")
        if not await queues.drain(seconds):
            await queues.unhold("handover")
            error = ControllerTimeout(f"{controller.uri}: commands are still in flight after {seconds:g} s")
            with contextlib.suppress(OSError):
                wire.send_now(withdrawn=str(error))
            raise error

    async def _pass_on(self, wire: Wire) -> None:
        """From "ready" to the end, for a successor with queues of its own. May be called again:
        see finish().
        """
        controller = self._controller
        if not self.taken:
            if not self._went:
                began = time.monotonic()
                await self._drain(wire)
                with contextlib.suppress(OSError):  # then the answer says so
                    wire.send_now(go={"frozen": began, "phases": {}})
                self._went = True
            answer = await self._answer(wire)
            if not answer.get("taken"):
                await controller.transport.queues.unhold("handover")
                raise RestoreRefused(f"the successor refused: {answer.get('refused', 'no reason given')}")
            self.taken = True
        await controller.close()

    async def _live(self, wire: Wire, successor_pid: int | None) -> None:
        controller = self._controller
        await controller._at_rest(_SETTLING_SECONDS)
        await wire.send(offer="live", uri=controller.uri, direct=controller.device.direct, **await self._registers())
        with controller.bundle() as bundle:
            await in_thread(lambda: send_bundle(wire.socket, bundle, timeout=READY_SECONDS))
        answer = await wire.receive(READY_SECONDS)
        if not answer.get("ready"):
            raise RestoreRefused(f"the successor refused: {answer.get('refused', 'no reason given')}")
        async with self._committing:
            self._stop_listening()
            await finish(lambda: self._commit(wire, successor_pid))

    async def _registers(self) -> dict[str, Any]:
        """Of a device that is reached by messages, which a successor can't send while this
        process does.
        """
        controller = self._controller
        if not controller.device.direct and controller.pcie.own_memory.queues is not None:
            # The successor must map the Controller Memory Buffer, which takes messages: it connects
            # once this process has let go.
            self._short = False
        if not self._short:
            return {}
        return {"registers": {} if controller.device.direct else await in_thread(controller.registers.read_all)}

    async def _commit(self, wire: Wire, successor_pid: int | None) -> None:
        """From "ready" to the end. Continues where it was if it is called again: see
        finish().
        """
        controller = self._controller
        async with controller._lock:
            if controller.state != "handed over":
                if controller.state != "saving":
                    await self._go(wire)
                answer = await self._answer(wire)
                self.taken = bool(answer.get("taken"))
            if self.taken:
                self._leave(saving.release(controller, later=True))
                if controller.depositor is not None:
                    if successor_pid is None:
                        await controller.depositor.end()
                    else:
                        await controller.depositor.pass_on(successor_pid)
                return
            await saving.resume(controller)
        reason = f"the successor refused: {answer.get('refused', 'no reason given')}"
        if answer.get("touched", True):
            await controller.reset(reason)
        raise RestoreRefused(reason)

    def _leave(self, finish: Callable[[], None]) -> None:
        loop = self._controller.loop
        self._ends.append(finish)
        self._end_at = loop.time() + _SUCCESSOR_FIRST
        loop.call_at(self._end_at, finish)

    async def _end(self) -> None:
        """Ends what this process has of the controller; in time, even if cancelled."""
        if self._ends:
            try:
                await asyncio.sleep(max(0.0, self._end_at - self._controller.loop.time()))
            finally:
                for finish in self._ends:
                    finish()

    async def _go(self, wire: Wire) -> None:
        controller = self._controller
        if controller.depositor is not None:
            # From now on a second process may drive it; a third must not get it from the keeper.
            await controller.depositor.suspend()
        try:
            await saving.suspend(controller)
        except BaseException as error:
            with contextlib.suppress(OSError):
                wire.send_now(withdrawn=str(error) or repr(error))
            raise
        try:
            phases = controller.phases.seconds if controller.phases is not None else {}
            recorder = controller.recorder
            wire.send_go(phases, recorder.manifest.sequence if recorder is not None else 0, short=self._short)
        except OSError as error:
            await saving.resume(controller)
            raise ControllerGone(f"the successor is gone: {error}") from error

    async def _answer(self, wire: Wire) -> dict[str, Any]:
        try:
            return await wire.receive(TAKEN_SECONDS, alone=True)
        except ControllerTimeout as error:
            # It is alive and has the controller; two drivers would be worse than a slow one.
            log.warning("%s: %s; it has the controller", self._controller.uri, error)
            return {"taken": True}
        except OSError:
            return {"refused": "it ended while taking over", "touched": True}
