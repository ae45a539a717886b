"""The built-in NVMe controller: reactor threads and the controllers they serve (native)."""

from collections.abc import Sequence
from typing import Protocol

MAX_IO_QUEUES: int
MAX_VECTORS: int
MAX_NAMESPACES: int

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
