"""The transport seam: the interface between one controller's driver and the controller itself.

Above the seam everything is the same for all transports: lifecycle, Identify, namespaces, events,
recovery's decisions, the manager, the command line. Below it a transport knows how to send commands
to the controller:

    pcie      rings, doorbells, PRPs in DMA memory (nvme_async.driver.pcie), over VFIO or vfio-user
    others    registered by URI scheme, see nvme_async.driver.schemes

A transport makes queues, one for admin commands and one per event loop that does I/O. Methods that
it can't support (registers, zero copy, keepalive) raise ConfigurationError; nothing is emulated.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar

from nvme_async.device.base import DeviceIds
from nvme_async.device.quirks import NO_QUIRKS, Quirks
from nvme_async.dma import DmaBuffer
from nvme_async.driver.lifecycle import Lifecycle
from nvme_async.driver.options import Options
from nvme_async.driver.own_memory import ControllerMemory, PersistentMemory
from nvme_async.driver.registration import Registration
from nvme_async.driver.steps import Degraded, Step
from nvme_async.errors import ConfigurationError, DeviceError, NvmeError
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyController
from nvme_async.spec.registers import Cap, Register, Vs

T = TypeVar("T")


@contextmanager
def system_errors(uri: str) -> Iterator[None]:
    """Errors of the operating system (descriptors, threads, memory) become a DeviceError."""
    try:
        yield
    except NvmeError:
        raise
    except OSError as error:
        hint = " (`ulimit -n`)" if error.errno == errno.EMFILE else ""
        failure = DeviceError(f"{uri}: {error.strerror or error}{hint}")
        failure.errno = error.errno
        raise failure from error


class BatchOfCommands(Protocol):
    """Many commands as one awaitable, from CommandQueue.batch(). Complete once it was awaited."""

    statuses: Any
    """array("H"): each element's 15-bit status field, 0 = success."""

    @property
    def failed(self) -> int: ...
    def command(self, element: int) -> bytes:
        """The 64 bytes of one element's command."""

    def __len__(self) -> int: ...
    def __await__(self) -> Any: ...


class CommandQueue(Protocol):
    """One event loop's queue to the controller. Everything on that loop, unless said
    otherwise.
    """

    loop: asyncio.AbstractEventLoop
    timeout: float
    """Seconds after which a command is late; 0: never."""
    worker: str
    """Name of the thread that uses it."""

    @property
    def qid(self) -> int:
        """0 is the admin queue."""

    @property
    def entries(self) -> int:
        """One more than the commands in flight at most."""

    @property
    def in_flight(self) -> int:
        """Commands that the controller has not completed yet. From any thread."""

    async def submit(
        self,
        command: Command,
        buffer: Any = None,
        *,
        tag: int = 0,
        internal: bool = False,
        user: bool = False,
        geometry: Any = None,
    ) -> Completion:
        """One command; its returned data, if any, is in Completion.data as bytes, or in
        `buffer`.

        buffer: the data to send, or where returned data goes; held until the controller is done
            with it.
        internal: without a time limit. user: an admin command of the application. geometry: the
            format that the buffer was sized for (Namespace.geometry): its check() raises if it is
            not the present one.
        Raises CommandError and its subclasses; ValueError if data are missing or of the wrong
        length.
        """

    async def io(self, namespace: Any, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The Namespace method `method` on this queue, for a namespace whose own fast path did
        not find it.

        nvme_async.driver.command_io serves transports that only have submit().
        """

    def batch(
        self,
        opcode: int,
        nsid: int,
        lbas: Any,
        blocks: int,
        data: Any,
        nbytes: int,
        *,
        to_host: bool,
        depth: int = 0,
        flags: int = 0,
        geometry: Any = None,
    ) -> BatchOfCommands:
        """Many reads or writes of `blocks` blocks and `nbytes` bytes each, at most `depth` in
        flight.

        flags: of command dword 12. If it must wait for memory, the awaitable does so.
        """

    def mark_timed_out(self, cids: Sequence[int]) -> None:
        """These commands are about to be aborted: if they end that way, their waiters get
        CommandTimeout.
        """

    def still_out(self, cids: Sequence[int]) -> bool:
        """Has one of them not completed yet?"""

    def left_behind(self, nsid: int, lba: int, blocks: int) -> list[int]:
        """Abandoned commands that may still change one of these blocks."""

    def when_gone(self, cids: list[int], callback: Callable[[], None]) -> None:
        """Calls callback() in this loop's thread once none of them is with the controller any
        more.
        """

    def poll(self) -> None:
        """Reaps the available completions. For a loop that doesn't run."""

    @property
    def closed(self) -> bool: ...

    def inspect(self) -> dict[str, Any]:
        """Counters and pending commands, as plain data. From any thread."""


class QueueGroup(Protocol):
    """The queues of one controller. On the controller's home loop, unless said otherwise."""

    hot: dict[asyncio.AbstractEventLoop, Any]
    """{loop: native queue pair}, for the namespaces' fast path; empty if a transport has
    none.
    """
    limit: int
    """The maximum number of I/O queues."""

    @property
    def neighbours(self) -> dict[asyncio.AbstractEventLoop, Any]:
        """{loop: another loop's queue, which it has to share}."""

    @property
    def admin(self) -> CommandQueue: ...
    def all(self) -> Sequence[CommandQueue]:
        """The admin queue first."""

    def with_commands(self) -> Sequence[CommandQueue]:
        """All I/O queues that may have commands in flight."""

    async def for_this_loop(self) -> CommandQueue | None:
        """The running loop's own queue, made at first use; None if it shares another loop's.
        From any loop.
        """

    async def hold(self, reason: str) -> None:
        """New I/O waits until unhold() was called for each reason."""

    async def unhold(self, reason: str) -> None:
        """New I/O goes on, if nothing else holds it."""

    async def refuse(self, error: NvmeError) -> None:
        """New I/O fails with `error`."""

    async def fail(self, error: NvmeError, *, admin: bool = True) -> None:
        """All waits end with `error`. Memory stays with the controller. admin: the admin queue's
        too.
        """

    async def drain(self, seconds: float, nsids: frozenset[int] | None = None) -> bool:
        """Waits until no I/O is in flight, of these namespaces or of any; False when that took
        too long.
        """

    async def go_on(self, *, strictly: bool = False) -> None:
        """Geometries of namespaces were held, released or expired: each queue checks its waiting
        requests again.

        From here on none sends what they forbid. strictly: ControllerTimeout if a queue's thread is
        stuck.
        """

    async def silence(self) -> None:
        """Before a reset: nothing more is sent, until go()."""

    async def go(self) -> None:
        """After bring-up or reset: waiting commands in the queues are sent, new I/O too, if
        nothing else holds it.
        """

    def refuse_in_child(self, error: NvmeError) -> None:
        """In a forked child: all calls are refused from now on, and nothing is touched."""

    def inspect(self) -> dict[str, Any]: ...


class Owner(Protocol):
    """The part of its controller that a transport needs."""

    uri: str
    options: Options
    loop: asyncio.AbstractEventLoop
    lifecycle: Lifecycle
    identify: IdentifyController
    resets: int
    quirks: Quirks
    degraded: Degraded

    @property
    def fused(self) -> bool: ...
    async def _at_home(self, make: Callable[[], Any]) -> Any: ...
    async def _on_owner(self, queue: Any, function: Callable[[], T], *, timeout: float = 10.0) -> T: ...
    async def _until_ready(self) -> None: ...
    async def _submit_admin(self, command: Command, buffer: Any = None) -> Completion: ...
    def _not_here(self) -> NvmeError: ...
    def _changed(self, *, strictly: bool = False) -> None: ...
    def _fail(self, error: NvmeError) -> None: ...
    def _on_timeout(self, queue: Any, late: list[tuple[int, bytes]]) -> None: ...
    def _on_slow(self) -> None: ...
    def _on_stray(self, n: int, what: str, ambiguous: bool, resets: int) -> None: ...
    def _request_reset(self, reason: str) -> None: ...


class Transport(ABC):
    """The transport of one controller. Made by nvme_async.driver.schemes.open_transport(),
    before the controller.

    Attributes:
        kind: "pcie", "tcp", …
        uri: the address it was opened with.
        cap, vs: the properties of those names (Base 2.0, 3.1.3), once the open steps are over.
        quirks: the device's deviations from the specification, by its PCI ids, from attach() on.
        owners_quirks: those that the process which shares the device has found, by name; "" if
            there is none.
        queues: the controller's queues, from attach() on.
    """

    kind: str
    uri: str
    cap: Cap = Cap()
    vs: Vs = Vs()
    quirks: Quirks = NO_QUIRKS
    owners_quirks: str = ""
    has_events: bool = True
    """Does the controller answer Asynchronous Event Requests of this process's?"""
    configured: bool = True
    """Are the controller's features this driver's to set? False: another process has done so."""
    coexists: bool = False
    """Can two processes be connected to the controller at a time, each with queues of its own?"""
    fuses: bool = False
    """Are commands sent in the order of the queue, with two of a fused operation announced
    together?
    """
    queues: QueueGroup

    @property
    def ids(self) -> DeviceIds | None:
        """The identity of the PCI function, if there is one."""
        return None

    @property
    def readable(self) -> Sequence[Register]:
        """The properties that read_property() can read."""
        return ()

    @property
    def all_command_sets(self) -> bool:
        """Does the controller run with CC.CSS=110b, so that Identify by command set can be used
        (3.1.3.5)?
        """
        return False

    @abstractmethod
    def attach(self, owner: Owner) -> None:
        """Called once, when the controller object is made. On its home loop."""

    # -- bring-up and reset: parts of the table in nvme_async.driver.bringup -----------------------

    @abstractmethod
    def open_steps(self) -> Sequence[Step]:
        """At open() only: reads the basic properties (`cap`, `vs`), and checks whether the
        controller is supported.
        """

    @abstractmethod
    def connect_steps(self, degraded: Degraded, error: NvmeError) -> Sequence[Step]:
        """From any state of the controller to an admin queue that works.

        error: the exception for in-flight commands that must not be resent.
        """

    @abstractmethod
    def queue_steps(self, degraded: Degraded, lost: set[str]) -> Sequence[Step]:
        """After Identify Controller: the I/O queues. lost: names of steps whose loss has cost an
        attempt.
        """

    def another_attempt(self, usual: bool) -> bool:
        """After a failed attempt: should there be another? usual: the default by the failure and
        the number of attempts.
        """
        return usual

    def limit_transfer(self, mdts: int) -> bool:
        """Sets Identify's limit of one command's data in bytes (0: no limit). True if the limit
        has changed.
        """
        return False

    def allow_sgl(self, kind: int, *, metadata: bool) -> None:
        """Sets Identify's word on Scatter Gather Lists for I/O commands (SGLS bits 1:0, Base 2.0,
        figure 275), and on those for their metadata (bit 19), before the I/O queues are made and
        after each reset. Transports with lists of their own ignore it.
        """
        return

    @property
    @abstractmethod
    def max_transfer(self) -> int:
        """Bytes of one I/O command."""

    # -- health ------------------------------------------------------------------------------------

    @abstractmethod
    async def lost(self) -> str:
        """Why the controller's status requires a reset; empty if it doesn't.

        Raises ControllerGone if it is gone, ControllerTimeout.
        """

    async def sit_out(self, seconds: float) -> bool:
        """Waits while the controller reports paused processing, with I/O held; False if it
        hasn't paused, or for longer than `seconds`. Raises as lost(), and ControllerFatal.
        """
        return False

    async def read_property(self, register: Register) -> int:
        """A property of the controller (Base 2.1, 3.1.4), one of `readable`; reading has no side
        effect. On the home loop. ConfigurationError for another one, CommandError if the controller
        doesn't have it, ControllerGone, ControllerTimeout.
        """
        self._cannot(f"property {register.name} that can be read")

    @abstractmethod
    async def has_failed(self) -> bool:
        """CSTS.CFS, if the transport has it. Raises as lost()."""

    @property
    def trouble(self) -> str | None:
        """Why on_gone() was called, if known."""
        return None

    @abstractmethod
    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Calls on_gone() once on the home loop when the controller disappears; None: no longer."""

    # -- the end -----------------------------------------------------------------------------------

    @abstractmethod
    async def shut_down(self, seconds: float) -> None:
        """Deletes the I/O queues and shuts the controller down (Base 2.0, 3.6). NvmeError,
        TimeoutError.
        """

    @abstractmethod
    async def release(self, reason: NvmeError, *, keep: bool = False) -> Transport | None:
        """Ensures that the controller can't access memory any more; only then releases memory
        and closes.

        Remaining waiters end with `reason`. keep: stays open and returns a transport for another
        controller object; None if that isn't possible. May be called again when it was interrupted.
        """

    @abstractmethod
    async def cut_off(self) -> None:
        """Closes the connection to the controller at once, regardless of waiters. release()
        follows.
        """

    @abstractmethod
    def drop(self) -> None:
        """Without a loop: closes everything at once, sends nothing. For a controller that was
        never closed.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Closes a transport that no controller was made for."""

    # -- memory ------------------------------------------------------------------------------------

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        """Memory that the device can access directly. See Controller.alloc()."""
        self._cannot("direct memory access")

    def register(self, buffer: Any) -> Registration:
        """See Controller.register()."""
        self._cannot("direct memory access")

    async def open_cmb(self) -> ControllerMemory:
        """See Regions.cmb()."""
        self._cannot("Controller Memory Buffer")

    async def open_pmr(self, *, healthy: bool) -> PersistentMemory:
        """See Regions.pmr()."""
        self._cannot("Persistent Memory Region")

    def inspect(self) -> dict[str, Any]:
        """Keys for Controller.inspect(): at least those of QueueGroup.inspect()."""
        return self.queues.inspect()

    def _cannot(self, what: str) -> NoReturn:
        raise ConfigurationError(f"{self.uri}: a controller reached over {self.kind} has no {what}")
