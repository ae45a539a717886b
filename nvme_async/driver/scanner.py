"""Keeps `controller.namespaces` up to date, one scan at a time.

A scan reads the list of active namespaces, and of each its format and identity. Then, in one step
without a wait, it compares: a namespace whose format has changed ends the requests that were made
for the old one; one whose identifiers differ is another namespace, so the old handle ends and there
is a new one. A namespace whose Identify fails keeps its handle and is read again soon, without
effect on the others.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from nvme_async.driver import discovery
from nvme_async.driver.context import ControllerContext
from nvme_async.driver.events import Event, Kind
from nvme_async.driver.namespace import Namespace
from nvme_async.errors import CommandError, ControllerTimeout, NvmeError
from nvme_async.spec.completion import AsyncEvent
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.identity import NamespaceIdentity

log: logging.Logger = logging.getLogger("nvme_async")

# Delay in seconds before a failed read is repeated: first, maximum, and how often in a row.
FIRST_PAUSE, LONGEST_PAUSE, RETRIES = 0.05, 5.0, 20
# After so many unanswered Identify commands in one scan, the others are not sent.
MAX_UNANSWERED = 2


class Scanner:
    """Attributes:
    unread: {nsid: reason} of the namespaces whose Identify failed at the last scan; 0 stands for
        the list itself.
    scans, retries: how many there were, and how many of them because something could not be read.
    """

    scans: int
    retries: int

    def __init__(self, controller: ControllerContext) -> None:
        self._controller = controller
        self._lock = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self._again: asyncio.Task[None] | None = None
        self.unread: dict[int, str] = {}
        self.scans = 0
        self.retries = 0

    async def scan(self, cause: AsyncEvent | None = None) -> None:
        """Returns when a scan has ended that started after this call. Several callers share one.

        Raises NvmeError when the list of namespaces can't be read, or the controller fails.
        """
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._answered >= mine:
                return
            asked = self._asked
            await self._scan(cause, ())
            self._answered = asked
        if self.unread:
            self.later("Identify failed")

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """No scan within the block except those by controller_again() and namespaces_again()."""
        async with self._lock:
            yield

    async def controller_again(self) -> None:
        """Reads Identify Controller again, after a command that may have changed it. Raises
        ControllerReplaced, CommandError, ControllerError. Within alone().
        """
        controller = self._controller
        identify = await discovery.identify_controller(controller)
        try:
            controller.identify_nvm = await discovery.identify_command_set(controller)
        except CommandError as error:
            log.warning(
                "%s: the limits of the NVM command set can't be read: %s; the former limits stay", controller.uri, error
            )
        controller._identified(identify)

    async def namespaces_again(self, concerned: Iterable[Namespace]) -> bool:
        """A scan after a command that may have changed these namespaces. True if all of them are
        known again; the others take no requests until they are. Within alone().
        """
        asked = self._asked
        await self._scan(None, [namespace.nsid for namespace in concerned])
        self._answered = asked
        if self.unread:
            self.later("Identify failed")
        return True

    async def _scan(self, cause: AsyncEvent | None, changed: Iterable[int]) -> None:
        """changed: the known state of these is dropped if they can't be read now."""
        controller = self._controller
        self.scans += 1
        try:
            listed = await discovery.active_namespaces(controller)
        except NvmeError as error:
            self.unread = {0: str(error)}
            raise
        found: dict[int, tuple[IdentifyNamespace, NamespaceIdentity]] = {}
        unread: dict[int, str] = {}
        degraded = controller.degraded
        unanswered: list[ControllerTimeout] = []
        for nsid in listed:
            try:
                if len(unanswered) >= MAX_UNANSWERED:
                    raise unanswered[0]  # each lost command costs its timeouts
                examined = await discovery.examine(controller, nsid)
            except (CommandError, ControllerTimeout) as error:
                if isinstance(error, ControllerTimeout):
                    unanswered.append(error)
                unread[nsid] = str(error)
                known = nsid in controller.namespaces
                degraded.add(f"namespace {nsid}", error, "it stays as it was" if known else "it is omitted for now")
                continue
            degraded.clear(f"namespace {nsid}")
            if examined is not None:
                found[nsid] = examined
        self.unread = unread
        for nsid in unread:
            if nsid in changed and nsid in controller.namespaces:
                controller.namespaces[nsid]._unknown()
        # Also of those that were only tried because there is no list.
        for name in list(degraded.reasons):
            if name.startswith("namespace ") and int(name.split()[1]) not in unread:
                degraded.clear(name)
        if not unread:
            degraded.clear("namespaces")
        await self._apply(found, cause)

    async def _apply(
        self, found: dict[int, tuple[IdentifyNamespace, NamespaceIdentity]], cause: AsyncEvent | None
    ) -> None:
        controller = self._controller
        before = controller.namespaces
        changes: list[tuple[Kind, int]] = []
        after: dict[int, Namespace] = {}
        for nsid in sorted({*found, *(nsid for nsid in self.unread if nsid in before)}):
            namespace = before.get(nsid)
            if nsid not in found:
                assert namespace is not None
                after[nsid] = namespace
                continue
            identify, identity = found[nsid]
            kind: Kind | None = None
            if namespace is not None and namespace.identity.is_other(identity):
                log.warning("%s: namespace %d: %s became %s", controller.uri, nsid, namespace.identity, identity)
                namespace._replace(identity)
                namespace, kind = None, "namespace-replaced"
            if namespace is None:
                namespace = Namespace(controller, nsid)
                namespace._update(identify, identity)
                kind = kind or "namespace-added"
            elif namespace._update(identify, identity):
                kind = "namespace-changed"
            after[nsid] = namespace
            if kind is not None:
                changes.append((kind, nsid))
        for nsid, namespace in list(before.items()):
            if nsid not in after:
                del before[nsid]
                namespace._remove()
                changes.append(("namespace-removed", nsid))
        # In place, and never empty in between, because other threads read it. Ascending.
        before.update(after)
        if list(before) != list(after):
            for nsid in after:
                before[nsid] = before.pop(nsid)
        if changes:
            controller._changed()
            for kind, nsid in changes:
                controller._publish(Event(kind, controller.uri, nsid, cause))
            await controller.transport.queues.go_on()

    # -- failed reads --------------------------------------------------------------------

    def later(self, why: str) -> None:
        """Scans again after a pause, repeatedly until everything could be read, at most RETRIES
        times. Does nothing if this is running already.
        """
        if self._again is None or self._again.done():
            log.info("%s: rescanning the namespaces: %s", self._controller.uri, why)
            self._again = self._controller.loop.create_task(self._until_read(), name=f"{self._controller.uri} rescan")

    async def _until_read(self) -> None:
        controller = self._controller
        pause = FIRST_PAUSE
        for _ in range(RETRIES):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if controller.state in ("new", "resetting", "saving"):
                continue
            if controller.state != "ready":
                return
            self.retries += 1
            try:
                await self.scan()
            except CommandError as error:
                log.debug("%s: %s", controller.uri, error)
            except NvmeError as error:
                log.warning("%s: %s", controller.uri, error)
                return  # the controller's failure, which is handled elsewhere
            else:
                if not self.unread:
                    return
        log.error("%s: no further attempt before the next rescan: %s", controller.uri, self.unread)

    async def stop(self) -> None:
        """No more scans by itself."""
        task, self._again = self._again, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def inspect(self) -> dict[str, Any]:
        return {
            "scans": self.scans,
            "retries": self.retries,
            "retrying": self._again is not None and not self._again.done(),
            "unread": {nsid or "list": why for nsid, why in self.unread.items()},
        }
