"""The driver's side of the holder of a controller's descriptors while no driver runs: a keeper,
or systemd's descriptor store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from nvme_async.errors import KeeperError
from nvme_async.keepalive import config, systemd
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.keeper.client import KeeperClient
from nvme_async.keepalive.keeper.wire import close_all

log: logging.Logger = logging.getLogger("nvme_async")
T = TypeVar("T")

FIRST_RETRY, LAST_RETRY = 0.1, 5.0  # seconds between attempts to reach a keeper again


class Custodian(Protocol):
    """For one controller, on its home loop; one call at a time. Every call is bounded by a few
    seconds and raises KeeperError.
    """

    @property
    def words(self) -> str:
        """Its description for people."""

    async def take(self, uri: str, wait: float = 0.0) -> Bundle | None:
        """The predecessor's bundle, which now belongs to this process alone; None: start afresh,
        while no other process may.

        wait: seconds to wait for a living predecessor.
        """

    async def deposit(self, bundle: Bundle) -> None:
        """Holds copies of the bundle's descriptors from now on, in place of earlier ones."""

    async def forget(self, uri: str) -> None:
        """The held descriptors are no longer useful; this process still owns the controller."""

    async def drop(self, uri: str) -> None:
        """This process no longer needs the controller, and there is nothing to take over."""

    async def release(self, uri: str, pid: int | None = None) -> None:
        """This process releases a running controller for any successor, or for process `pid`."""

    def close(self) -> None:
        """Releases this process's connection and copies; the deposit stays held."""


def _put(bundle: Bundle, client: KeeperClient) -> None:
    client.put(bundle.uri, bundle.descriptors)


class KeeperCustodian:
    """A keeper at a socket. If the keeper is restarted, it is connected again and gets the
    latest deposit.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._client: KeeperClient | None = None
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._latest: Bundle | None = None  # copies, for a keeper that is restarted
        self._watched = -1
        self._returning: asyncio.Task[None] | None = None

    @property
    def words(self) -> str:
        return f"keeper {self.path}"

    async def _call(self, function: Callable[[KeeperClient], T]) -> T:
        """One call in a thread. If the caller is cancelled the connection ends, and with it the
        call.
        """
        async with self._lock:
            self._unwatch()
            if self._client is None:
                self._client = await asyncio.to_thread(KeeperClient, self.path)
            client = self._client
            call = asyncio.ensure_future(asyncio.to_thread(function, client))
            try:
                return await asyncio.shield(call)
            except asyncio.CancelledError:
                client.abort()
                await asyncio.wait([call])
                if not call.cancelled() and call.exception() is None and isinstance(result := call.result(), dict):
                    close_all(result.values())  # the result of a get
                client.close()
                raise
            finally:
                if client.fileno() < 0:
                    self._client = None
                self._watch()

    # -- a lost keeper -------------------------------------------------------------------

    def _watch(self) -> None:
        if self._client is not None:
            self._watched = self._client.fileno()
            self._loop.add_reader(self._watched, self._on_end)
        elif self._latest is not None:
            self._return()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1

    def _on_end(self) -> None:
        """No message is expected from the keeper, so this is the end of the connection."""
        self._unwatch()
        if self._client is not None:
            self._client.close()
            self._client = None
        log.warning("the connection to %s is lost; reconnecting", self.words)
        self._return()

    def _return(self) -> None:
        if self._returning is None or self._returning.done():
            self._returning = self._loop.create_task(self._deposit_again(), name="return to the keeper")

    async def _deposit_again(self) -> None:
        delay = FIRST_RETRY
        while self._latest is not None:
            try:
                with self._latest.duplicate() as copy:
                    await self._call(partial(_put, copy))
            except KeeperError as error:
                if error.code:
                    log.error("%s; the controller would not outlive this process", error)
                    return
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY)
            else:
                log.info("deposited again with %s", self.words)
                return

    def _remember(self, bundle: Bundle | None) -> None:
        older, self._latest = self._latest, bundle
        if older is not None:
            older.close()

    # -- Custodian

    async def take(self, uri: str, wait: float = 0.0) -> Bundle | None:
        descriptors = await self._call(lambda client: client.get(uri, wait=wait))
        return Bundle(uri, b"", descriptors) if descriptors else None

    async def deposit(self, bundle: Bundle) -> None:
        latest = bundle.duplicate()
        try:
            await self._call(partial(_put, latest))
        except BaseException:
            latest.close()
            raise
        self._remember(latest)

    async def forget(self, uri: str) -> None:
        self._remember(None)
        await self._call(lambda client: client.put(uri, {}))

    async def drop(self, uri: str) -> None:
        self._remember(None)
        await self._call(lambda client: client.drop(uri))

    async def release(self, uri: str, pid: int | None = None) -> None:
        self._remember(None)
        await self._call(lambda client: client.release(uri) if pid is None else client.give(uri, pid))

    def close(self) -> None:
        self._remember(None)
        if self._returning is not None:
            self._returning.cancel()
        if not self._loop.is_closed():
            self._unwatch()
        if self._client is not None:
            self._client.close()
            self._client = None


class SystemdCustodian:
    """The descriptor store of this service."""

    words = "systemd's descriptor store"

    async def take(self, uri: str, wait: float = 0.0) -> Bundle | None:
        return await asyncio.to_thread(systemd.store().take, uri)

    async def deposit(self, bundle: Bundle) -> None:
        with bundle.duplicate() as copy:
            await asyncio.to_thread(systemd.store().deposit, copy)

    async def forget(self, uri: str) -> None:
        await asyncio.to_thread(systemd.store().drop, uri)

    async def drop(self, uri: str) -> None:
        await asyncio.to_thread(systemd.store().drop, uri)

    async def release(self, uri: str, pid: int | None = None) -> None:
        """It stays in the store: the successor in the same service gets it at its start, and
        another process has duplicates.
        """

    def close(self) -> None:
        pass


def find_custodian(keeper: str | None) -> Custodian | None:
    """keeper: a socket's path, "systemd", or "none"; None: the command line's option, otherwise
    systemd's store if this service has one.
    """
    keeper = config.command_line.keeper if keeper is None else keeper
    if keeper is None:
        return SystemdCustodian() if systemd.store().available else None
    if keeper == "none":
        return None
    return SystemdCustodian() if keeper == "systemd" else KeeperCustodian(keeper)
