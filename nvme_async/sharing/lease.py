"""The owner's view of one worker's lease: queue pairs, mapped memory, stop word, process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import stat
import time
from enum import StrEnum
from typing import Any, Protocol

import attrs

from nvme_async.device import Device
from nvme_async.errors import LeaseError
from nvme_async.native._placement import address_of
from nvme_async.sharing.channel import Channel
from nvme_async.spec.registers import PAGE


class QueueIs(StrEnum):
    """The state of one I/O queue pair at the controller."""

    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    """Being created or deleted, or that has failed: only a deletion or a reset makes its state
    certain.
    """
    PRESENT = "present"


class Candidate(Protocol):
    """A process that is about to take a worker's lease over: its connection."""

    pid: int
    channel: Channel


@attrs.define(eq=False)
class Mapping:
    """Memory of the worker that the controller can access.

    view: this process's mapping of it, if the device maps by address.
    """

    iova: int
    nbytes: int
    view: mmap.mmap | None = None

    def covers(self, iova: int, nbytes: int) -> bool:
        return self.iova <= iova and iova + nbytes <= self.iova + self.nbytes

    def overlaps(self, iova: int, nbytes: int) -> bool:
        return self.iova < iova + nbytes and iova < self.iova + self.nbytes


def process_of(pid: int) -> tuple[str, int]:
    """(command name, start time in clock ticks since boot) of a process; ("", 0) if there is
    none.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
    except OSError:
        return "", 0
    name, _, rest = text.rpartition(")")
    return name.partition("(")[2], int(rest.split()[19])


@attrs.define(eq=False)
class Lease:
    """On the controller's home loop.

    Attributes:
        number, token: identify it in the worker's requests.
        pid, command, started: its process; pidfd: readable once that has ended, -1: not watched.
        queues: {queue id: its state at the controller}.
        created: {queue id: what its worker asked for}, for requests that are repeated because their
            answer was lost. Another owner doesn't know it.
        window: device addresses for its memory.
        slot: its word of the stop page. `life`: the epoch of its queues.
        rings: one of its queues may have been created, so its process may ring doorbells.
        confirmed: the latest epoch for which the worker has confirmed that it rings no doorbell of
            an earlier one.
        ending: why it is being taken back, or "".
        in_flight, commands: with the controller, and completed in all, as the worker has said last.
        channel: the connection, or None. absent_since: since when it is missing.
        candidate: the connection of a successor that has joined (transfer.py), or None.
            announced: the number of notices that it was sent.
        withdrawn: the attempts to pass the lease on that its worker has withdrawn.
    """

    number: int
    token: str
    pid: int
    command: str
    started: int
    window: range
    slot: int
    life: int
    confirmed: int
    queues: dict[int, QueueIs]
    pidfd: int = -1
    mappings: list[Mapping] = attrs.field(factory=list)
    channel: Channel | None = None
    absent_since: float | None = None
    candidate: Candidate | None = None
    announced: int = 0
    withdrawn: list[int] = attrs.field(factory=list)
    ending: str = ""
    dead: bool = False
    rings: bool = False
    holding: int = 0
    held: int = 0
    in_flight: int = 0
    commands: int = 0
    began: float = attrs.field(factory=time.time)
    created: dict[int, tuple[int, ...]] = attrs.field(factory=dict)
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    settled: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def pool_bytes(self) -> int:
        return sum(mapping.nbytes for mapping in self.mappings)

    @property
    def present(self) -> list[int]:
        """Ids of queues that the controller knows, or may know."""
        return [qid for qid, what in self.queues.items() if what is not QueueIs.ABSENT]

    @property
    def silent(self) -> bool:
        """No doorbell store for queues of an earlier epoch can come from its process any
        more.
        """
        return self.dead or not self.rings or self.confirmed >= self.life

    def notify(self, kind: str, **body: Any) -> None:
        """Sends a notice, if there is a connection; also to a successor that has joined."""
        if self.channel is not None:
            self.channel.send(kind, body)
        if self.candidate is not None:
            self.announced += 1
            self.candidate.channel.send(kind, body)

    def check_life(self, life: int) -> None:
        """LeaseError with code "stale" unless that is the current epoch."""
        if life != self.life or self.ending:
            raise LeaseError(
                self.ending
                or f"epoch {life} of the queues has ended, the current one is {self.life}: the controller was reset",
                code="revoked" if self.ending else "stale",
            )

    def check_ring(self, what: str, iova: int, nbytes: int) -> None:
        """LeaseError unless the ring is page aligned and within one mapping of the worker's."""
        if iova % PAGE or not any(mapping.covers(iova, nbytes) for mapping in self.mappings):
            raise LeaseError(
                f"the {what} queue of {nbytes} bytes at {iova:#x} is not page-aligned, mapped memory",
                code="invalid",
            )

    def save(self) -> dict[str, Any]:
        """For a successor, in JSON's types; of() is the inverse."""
        return {
            "number": self.number,
            "token": self.token,
            "pid": self.pid,
            "command": self.command,
            "started": self.started,
            "window": [self.window.start, len(self.window)],
            "slot": self.slot,
            "confirmed": self.confirmed,
            "queues": {str(qid): str(what) for qid, what in self.queues.items()},
            "mappings": [[mapping.iova, mapping.nbytes] for mapping in self.mappings],
            "ending": self.ending,
            "rings": self.rings,
            "withdrawn": self.withdrawn,
            "began": round(self.began, 3),
        }

    @classmethod
    def of(cls, saved: dict[str, Any], life: int) -> Lease:
        """From a predecessor's saved state; `life`: the epoch on the stop page. KeyError,
        TypeError or ValueError for an invalid one.

        A process that has ended meanwhile is `dead`; for a living one, pidfd is open.
        """
        start, length = saved["window"]
        lease = cls(
            number=int(saved["number"]),
            token=str(saved["token"]),
            pid=int(saved["pid"]),
            command=str(saved["command"]),
            started=int(saved["started"]),
            window=range(start, start + length),
            slot=int(saved["slot"]),
            life=life,
            confirmed=int(saved["confirmed"]),
            queues={int(qid): QueueIs(what) for qid, what in saved["queues"].items()},
            mappings=[Mapping(int(iova), int(nbytes)) for iova, nbytes in saved["mappings"]],
            ending=str(saved["ending"]),
            rings=bool(saved.get("rings", True)),
            withdrawn=[int(attempt) for attempt in saved.get("withdrawn", ())],
            began=float(saved["began"]),
        )
        try:
            lease.pidfd = os.pidfd_open(lease.pid)
        except OSError:
            lease.dead = True
        if not lease.dead and process_of(lease.pid)[1] != lease.started:
            os.close(lease.pidfd)
            lease.pidfd, lease.dead = -1, True
        if lease.dead:
            lease.confirmed = life
        return lease

    def inspect(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "lease": self.number,
            "pid": self.pid,
            "command": self.command,
            "queues": {qid: str(what) for qid, what in self.queues.items()},
            "pool_bytes": self.pool_bytes,
            "mappings": len(self.mappings),
            "in_flight": self.in_flight,
            "commands": self.commands,
            "age": round(time.time() - self.began, 3),
            "life": self.life,
            "connected": self.channel is not None,
            "state": self.ending or ("lives" if not self.dead else "dead"),
        }


def check_memory(fd: int, iova: int, nbytes: int, offset: int) -> None:
    """LeaseError unless the descriptor has that much memory; its file is sealed against
    shrinking if possible.
    """
    if not nbytes or (iova | nbytes | offset) % PAGE:
        raise LeaseError(f"map: {nbytes} bytes from {offset:#x} at {iova:#x} are not whole pages", code="invalid")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or offset + nbytes > status.st_size:
        raise LeaseError(f"map: the descriptor is not memory of {offset + nbytes} bytes", code="invalid")
    # Not every file can be sealed; if a worker truncates one, the controller's mapping of it
    # vanishes.
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def map_memory(device: Device, mapping: Mapping, fd: int, offset: int) -> None:
    """Maps a worker's memory at the device. Blocks; raises DeviceError and the system's
    errors.
    """
    if not device.direct:
        device.map_dma(fd, iova=mapping.iova, nbytes=mapping.nbytes, file_offset=offset)
        return
    mapping.view = mmap.mmap(fd, mapping.nbytes, offset=offset)
    address = address_of(mapping.view)
    device.map_dma(fd, iova=mapping.iova, nbytes=mapping.nbytes, file_offset=offset, address=address)
