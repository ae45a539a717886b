"""The built-in NVMe controller: reactor threads and the controllers they serve (native)."""

from collections.abc import Sequence
from typing import Any, Protocol

MAX_IO_QUEUES: int
MAX_VECTORS: int
MAX_NAMESPACES: int
FAULT_ACTIONS: dict[str, int]
FAULT_PAYLOAD_MAX: int

class _Medium(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def path(self) -> str: ...

class _Config(Protocol):
    """Checked already; depth is CAP.MQES + 1, mdts_exponent a power of two over 4 KiB."""

    @property
    def media(self) -> Sequence[_Medium]: ...
    @property
    def queues(self) -> int: ...
    @property
    def vectors(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def mdts_exponent(self) -> int: ...
    @property
    def dbbuf(self) -> bool: ...
    @property
    def vendor_id(self) -> int: ...
    @property
    def subsystem_vendor_id(self) -> int: ...
    @property
    def serial(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def firmware(self) -> str: ...

class Reactor:
    """A thread that serves controllers. Methods may be called from any thread; in a fork()ed child they raise
    RuntimeError."""

    def __init__(self, name: str = "nvme-emulator") -> None:
        """Starts the thread, named so (15 characters). OSError when it can't be started."""

    @property
    def closed(self) -> bool: ...
    def stats(self) -> dict[str, int]:
        """sleeps, naps (sleeps for a controller that can't wake the thread), cpu_ns, controllers, active."""

    def close(self) -> None:
        """Ends the thread. ValueError while it serves controllers."""

class Controller:
    """One emulated controller on a reactor, with at most one client. Methods may be called from any thread;
    each waits for the reactor to come round (microseconds) and for nothing else."""

    def __init__(self, config: _Config, reactor: Reactor, *, patience: float = 3.0) -> None:
        """ConfigurationError when the controller can't be had so. patience: seconds until a client that
        leaves its handshake, a message or a reply half done is dropped; 0 = never."""

    @property
    def closed(self) -> bool: ...
    @property
    def reactor(self) -> Reactor: ...
    def attach(self, fd: int) -> None:
        """Serves the client at the other end of this connected socket. Takes fd, also on failure. OSError
        EBUSY: there is one already."""

    def listen(self, fd: int) -> None:
        """Accepts clients from this listening socket, one at a time. Takes fd, also on failure."""

    def stop_listening(self) -> None: ...
    def drop_client(self) -> None: ...
    def stats(self) -> dict[str, int | bool | str | None]:
        """clients, messages, refused, interrupts (since the start); connected, negotiated, kicked, mappings,
        vectors (now); last_drop: why the latest client went."""

    def close(self) -> None:
        """Drops the client, ends listening, releases the medium. Harmless when repeated."""

class Faults:
    """faults.h, function by function; nvme_async.emulator.faults is what to use. Any thread. OSError with its
    errno."""

    def __init__(self, controller: Controller, timeout: float = 5.0) -> None:
        """timeout: seconds for requests that the reactor carries out (TimeoutError)."""

    def add(
        self,
        queue: str,
        qid: int,
        value: bytes,
        mask: bytes,
        skip: int,
        count: int,
        actions: int,
        delay_ns: int,
        distance: int,
        status: int,
        sqe: bytes,
        sqe_mask: bytes,
        cqe: bytes,
        cqe_mask: bytes,
        payload: bytes,
    ) -> int: ...
    def remove(self, rule: int) -> None: ...
    def clear(self) -> None: ...
    def hits(self, rule: int) -> tuple[int, bytes]: ...
    def wait(self, rule: int, hits: int, timeout: float) -> None: ...
    def release(self) -> int: ...
    def enable_delay(self, ready_ns: int, disabled_ns: int) -> None: ...
    def mqes(self, mqes: int) -> None: ...
    def fatal(self) -> None: ...
    def removed(self, removed: bool) -> None: ...
    def interrupt(self, vector: int) -> None: ...
    def temperature(self, kelvin: int) -> None: ...
    def namespace_add(self, nsid: int, medium: _Medium, notice: bool) -> None: ...
    def namespace_remove(self, nsid: int, notice: bool) -> None: ...
    def namespace_resize(self, nsid: int, nbytes: int, notice: bool) -> None: ...
    def outstanding(self) -> list[tuple[int, int, int, bool, int, bytes, list[tuple[int, int, bool]]]]: ...
    def trace(self, on: bool) -> None: ...
    def doorbells(self, start: int) -> list[tuple[int, int, int, bool, int, int]]: ...
    def counters(self) -> dict[str, Any]: ...
    def csts(self) -> int: ...
