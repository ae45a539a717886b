"""The keeper's deposits, their owners and waiters. Standard library only."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .wire import MAX_FDS, MAX_LABEL, MAX_NAME, MAX_WAIT, chunked, close_all, is_label, is_name

log: logging.Logger = logging.getLogger("keeper")

MAX_DEPOSIT_FDS = 8192
MAX_DEPOSITS = 256
LISTED = 16  # deposits in one message


class Refused(Exception):
    """A refusal for a client, whose connection continues."""

    def __init__(self, code: str, text: str, pid: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.pid = pid

    def answer(self) -> dict[str, Any]:
        return {"ok": False, "code": self.code, "error": str(self), "pid": self.pid}


class Process:
    """A client process, watched by a pidfd (-1: not supported, so the end of its connection
    counts).
    """

    def __init__(self, pid: int) -> None:
        """ProcessLookupError if it is dead already; OSError if no descriptors are available."""
        self.pid = pid
        self.dead = False
        self.connections = 0
        self.pidfd: int = -1
        if pid > 0:  # 0: it is in a pid namespace that this process can't see
            try:
                self.pidfd = os.pidfd_open(pid)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Client(Protocol):
    """A connection, as far as deposits go."""

    process: Process
    upload: tuple[str, dict[str, int]] | None
    """A deposit of which only some messages have come."""
    waiting: tuple[str, float] | None
    """(name, until when)"""


class Deposit:
    """The descriptors of one controller, by label, and its present owner."""

    def __init__(self, owner: Process, client: Client) -> None:
        self.fds: dict[str, int] = {}
        self.deposits = 0
        self.successors = 0
        self.change(owner, client)

    def change(self, owner: Process | None, client: Client | None = None, *, claimed: bool = False) -> None:
        self.owner = owner
        self.client = client  # the owner's connection that deposited it, while that lasts
        self.claimed = claimed
        self.since: float = time.monotonic()

    def free_for(self, client: Client) -> bool:
        return self.owner is None or (self.owner is client.process and self.client in (None, client))

    @property
    def state(self) -> str:
        if self.owner is None:
            return "orphaned"
        if not self.fds:
            return "reserved"
        return "claimed" if self.claimed else "owned"


class Deposits:
    """All deposits. Owns their descriptors, and incomplete deposits of clients.

    answer(client, message, fds): sends or queues; raises if that client can't be served any more.
        hang_up(client) ends its connection.
    find_process(pid): the Process of a pid; OSError when there is none.
    """

    def __init__(
        self,
        answer: Callable[[Any, dict[str, Any], Iterable[int]], None],
        hang_up: Callable[[Any], None],
        find_process: Callable[[int], Process],
        *,
        max_fds: int,
    ) -> None:
        self._answer = answer
        self._hang_up = hang_up
        self._find_process = find_process
        self._max_fds = max_fds
        self._deposits: dict[str, Deposit] = {}
        self._waiters: dict[str, collections.deque[Client]] = {}
        self._operations: dict[str, Callable[[Client, dict[str, Any]], dict[str, Any] | None]] = {
            "drop": self._drop,
            "get": self._get,
            "give": self._give,
            "list": self._list,
            "release": self._release,
        }

    # -- events of clients -------------------------------------------------------------------

    def request(self, client: Client, message: dict[str, Any], fds: list[int]) -> None:
        """Executes a message. The descriptors become ours, also if it is refused."""
        op = message.get("op")
        try:
            if op == "put":
                fds, taken = [], fds
                answer = self._put(client, message, taken)
            elif isinstance(op, str) and op in self._operations and not fds:
                answer = self._operations[op](client, message)
            else:
                raise Refused("invalid", f"{str(op)[:40]!r} is not an operation, or does not accept descriptors")
        except Refused as refused:
            answer = refused.answer()
        finally:
            close_all(fds)
        if answer is not None:
            self._answer(client, answer, ())

    def owns(self, process: Process) -> bool:
        return any(deposit.owner is process for deposit in self._deposits.values())

    def died(self, process: Process) -> None:
        """The process has ended: its deposits become free."""
        for name, deposit in list(self._deposits.items()):
            if deposit.owner is process:
                log.info("%s: process %d has exited", name, process.pid)
                self._orphan(name)

    def disconnected(self, client: Client) -> None:
        """Its connection has ended, but not necessarily its process."""
        self._stop_waiting(client)
        self._forget_upload(client)
        for name, deposit in list(self._deposits.items()):
            if deposit.client is client:
                deposit.client = None
                self._serve_waiters(name)

    def waited(self, client: Client) -> None:
        """Its wait has timed out."""
        assert client.waiting is not None
        name = client.waiting[0]
        self._stop_waiting(client)
        owner = self._deposits[name].owner
        refused = Refused("owned", f"{name} still belongs to another process", owner.pid if owner else None)
        self._answer(client, refused.answer(), ())

    def close(self) -> None:
        """Releases everything."""
        held = [name for name, deposit in self._deposits.items() if deposit.fds]
        if held:
            log.warning("ending with %d controllers held: %s", len(held), ", ".join(held))
        for deposit in self._deposits.values():
            close_all(deposit.fds.values())
        self._deposits.clear()

    # -- the operations ----------------------------------------------------------------------------

    @staticmethod
    def _name(message: dict[str, Any]) -> str:
        name = message.get("name")
        if not is_name(name):
            raise Refused("invalid", f"a name is 1 to {MAX_NAME} bytes of printable text")
        assert isinstance(name, str)
        return name

    def _mine(self, client: Client, name: str) -> Deposit | None:
        """The deposit if the client owns it; None if there is none."""
        deposit = self._deposits.get(name)
        if deposit is None or deposit.free_for(client):
            if deposit is not None and deposit.owner is None:
                raise Refused("owned", f"{name} is free for a successor: get it")
            return deposit
        assert deposit.owner is not None
        raise Refused("owned", f"{name} belongs to process {deposit.owner.pid}", deposit.owner.pid)

    def _check_room(self) -> None:
        if len(self._deposits) >= MAX_DEPOSITS:
            raise Refused("limit", f"the limit of {MAX_DEPOSITS} deposits is reached")

    def _check_put(self, client: Client, message: dict[str, Any], fds: list[int]) -> tuple[str, dict[str, int]]:
        name = self._name(message)
        labels = message.get("fds")
        if not isinstance(labels, list) or len(labels) != len(fds) or not all(map(is_label, labels)):
            raise Refused(
                "invalid", f"{len(fds)} descriptors arrived without as many labels of 1 to {MAX_LABEL} ASCII characters"
            )
        started, before = client.upload or (name, {})
        if started != name or len(set(labels) | set(before)) != len(labels) + len(before):
            raise Refused("invalid", "a deposit must be complete before the next, and its labels must differ")
        present = sum(len(deposit.fds) for deposit in self._deposits.values())
        nfds = len(before) + len(fds)
        if nfds > MAX_DEPOSIT_FDS or present + nfds > self._max_fds:
            raise Refused(
                "limit", f"the limits are {MAX_DEPOSIT_FDS} descriptors in a deposit and {self._max_fds} in total"
            )
        if self._mine(client, name) is None:
            self._check_room()
        return name, {**before, **dict(zip(labels, fds, strict=True))}

    def _put(self, client: Client, message: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        try:
            upload = self._check_put(client, message, fds)
        except BaseException:
            close_all(fds)
            self._forget_upload(client)
            raise
        if message.get("more"):
            client.upload = upload
            return None
        client.upload = None
        name, present = upload
        deposit = self._deposits.get(name)
        if deposit is None:
            deposit = self._deposits[name] = Deposit(client.process, client)
        old, deposit.fds = deposit.fds, present
        close_all(old.values())
        if deposit.claimed or not old:
            deposit.change(client.process)
        deposit.client = client
        deposit.deposits += 1
        return {"ok": True}

    @staticmethod
    def _forget_upload(client: Client) -> None:
        if client.upload is not None:
            close_all(client.upload[1].values())
            client.upload = None

    def _get(self, client: Client, message: dict[str, Any]) -> None:
        name = self._name(message)
        wait = message.get("wait", 0)
        if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait <= MAX_WAIT:
            raise Refused("invalid", f"wait is {wait!r}, must be 0 to {MAX_WAIT:g} seconds")
        if client.waiting is not None:
            raise Refused("invalid", "this connection is already waiting")
        deposit = self._deposits.get(name)
        if deposit is None:
            self._check_room()
        elif not deposit.free_for(client):
            assert deposit.owner is not None
            if not wait:
                raise Refused(
                    "owned", f"{name} belongs to process {deposit.owner.pid}, which is alive", deposit.owner.pid
                )
            client.waiting = (name, time.monotonic() + wait)
            self._waiters.setdefault(name, collections.deque()).append(client)
            return
        self._hand(client, name)

    def _hand(self, client: Client, name: str) -> None:
        """Makes it the client's, and sends it."""
        deposit = self._deposits.get(name)
        if deposit is None:
            deposit = self._deposits[name] = Deposit(client.process, client)
        deposit.change(client.process, client, claimed=bool(deposit.fds))
        if deposit.fds:
            deposit.successors += 1
            log.info("%s: given to process %d", name, client.process.pid)
        for labels, more in chunked(list(deposit.fds), MAX_FDS):
            self._answer(client, {"ok": True, "fds": labels, "more": more}, [deposit.fds[label] for label in labels])

    def _orphan(self, name: str) -> None:
        """Its owner has died: the first in line gets it."""
        deposit = self._deposits[name]
        deposit.change(None)
        if not deposit.fds:
            del self._deposits[name]
        self._serve_waiters(name)

    def _serve_waiters(self, name: str) -> None:
        while name in self._waiters:
            client = self._waiters[name][0]
            deposit = self._deposits.get(name)
            if deposit is not None and not deposit.free_for(client):
                return
            self._stop_waiting(client)
            try:
                self._hand(client, name)
            except Exception as error:  # its failure must not affect another client
                log.info("process %d: %s", client.process.pid, error)
                self._hang_up(client)

    def _stop_waiting(self, client: Client) -> None:
        if client.waiting is None:
            return
        name, client.waiting = client.waiting[0], None
        with contextlib.suppress(ValueError):
            self._waiters[name].remove(client)
        if not self._waiters[name]:
            del self._waiters[name]

    def _release(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        name = self._name(message)
        if self._mine(client, name) is not None:
            self._orphan(name)
        return {"ok": True}

    def _give(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        name = self._name(message)
        pid = message.get("pid")
        if isinstance(pid, bool) or not isinstance(pid, int) or not 0 < pid < 1 << 31:
            raise Refused("invalid", f"{pid!r} is not a process id")
        deposit = self._mine(client, name)
        if deposit is None:
            raise Refused("invalid", f"no controller {name} is held")
        try:
            successor = self._find_process(pid)
        except OSError as error:
            raise Refused("invalid", f"process {pid}: {error.strerror}", pid) from None
        if successor.pidfd < 0:
            raise Refused("invalid", f"process {pid} can't be watched: the kernel has no pidfds", pid)
        deposit.change(successor, claimed=bool(deposit.fds))
        self._serve_waiters(name)
        return {"ok": True}

    def _drop(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        name = self._name(message)
        deposit = self._deposits.get(name)
        if deposit is None:
            return {"ok": True, "dropped": False}
        if deposit.owner is not None or message.get("force") is not True:
            self._mine(client, name)
        close_all(deposit.fds.values())
        del self._deposits[name]
        self._serve_waiters(name)
        return {"ok": True, "dropped": True}

    def _list(self, client: Client, message: dict[str, Any]) -> None:
        now = time.monotonic()
        deposits = [
            {
                "name": name,
                "state": deposit.state,
                "pid": deposit.owner.pid if deposit.owner else None,
                "fds": len(deposit.fds),
                "seconds": round(now - deposit.since, 3),
                "deposits": deposit.deposits,
                "successors": deposit.successors,
                "waiting": len(self._waiters.get(name, ())),
            }
            for name, deposit in sorted(self._deposits.items())
        ]
        for page, more in chunked(deposits, LISTED):
            self._answer(client, {"ok": True, "deposits": page, "more": more}, ())
