from io import FileIO
from typing import Any, final

def error_of(status: int) -> int:
    """The errno with which a request ends whose command had this NVMe status (type and code); 0:
    none.
    """

def device_info(*, queues: int, depth: int, max_io_bytes: int, device: int, pid: int, flags: int, mark: int) -> bytes:
    """The struct that ADD_DEV takes. mark: any number, which the kernel keeps with the device."""

def parse_device_info(data: bytes) -> dict[str, int]:
    """What the kernel returned for it: the same names, and "state"."""

def parameters(
    *,
    attributes: int,
    block_shift: int,
    physical_shift: int,
    optimal_shift: int,
    max_sectors: int,
    sectors: int,
    discard_granularity: int,
    discard_sectors: int,
    zero_sectors: int,
) -> bytes:
    """The struct that SET_PARAMS takes. Sectors have 512 bytes, discard_granularity is in bytes,
    shifts are powers of two of bytes (optimal_shift 0: not known).
    """

@final
class Control:
    """/dev/ublk-control. Threads: one at a time; send() blocks without the GIL.

    file: the opened device, kept. OSError where io_uring may not be used.
    """

    def __new__(cls, file: FileIO) -> Control: ...
    def send(
        self,
        command: int,
        device: int,
        *,
        data: int = 0,
        buffer: bytes = b"",
        legacy: bool = False,
        limit_ms: int = 10_000,
    ) -> bytes:
        """Sends one command, and returns the buffer as the kernel leaves it. OSError with the
        kernel's error, TimeoutError when the limit has passed: the command stays with the kernel
        then, and every later one fails the same way.

        legacy: command numbers as before Linux 6.4.
        """

@final
class Queue:
    """One queue of a device: a source of commands for _hotpath.Stream.

    fd: of /dev/ublkcN; stays the caller's, and open while the queue exists.
    memory: a writable buffer that the device reaches at `iova`, held for the queue's lifetime.
        offset: where it lies in its pool; None: in none. It holds `depth` buffers of cell_nbytes,
        a multiple of 4096 and of block_size.
    nbytes: of the device. zero_blocks, discard_blocks: of one Write Zeroes command and one range of
        Dataset Management; 0: there is none.

    The thread of the stream is the only one that the kernel accepts. The kernel may write to the
    memory until that thread has ended: the queue is dropped after it. OSError from the kernel.
    """

    source: Any
    """The capsule that Stream takes."""
    fd: int
    """Readable when requests have arrived."""
    fetching: bool
    """The kernel has all tags: the device may be started."""
    aborted: bool
    """The kernel has ended the device."""
    why: str | None
    """The queue has failed; None: it has not."""
    def __new__(
        cls,
        fd: int,
        memory: Any,
        *,
        number: int,
        iova: int,
        offset: int | None,
        depth: int,
        cell_nbytes: int,
        nbytes: int,
        nsid: int,
        block_size: int,
        zero_blocks: int,
        discard_blocks: int,
        read_only: bool,
        legacy: bool,
    ) -> Queue: ...
    def leave(self) -> None:
        """The stream ends when the requests that were begun are answered; later ones are left to
        the next server. On the stream's thread, or before stream.wake() there.
        """
    def resize(self, nbytes: int) -> None:
        """The device has this size now: later requests beyond it are refused. Any thread."""
    def close(self) -> None:
        """Closes what the kernel has. The thread has ended; what the controller still has of the
        memory stays.
        """
    def forget(self) -> None:
        """In a forked child: closes its copies."""
    def inspect(self) -> dict[str, Any]:
        """Counters since the queue began, and requests that are not answered yet
        ("in_flight").
        """
