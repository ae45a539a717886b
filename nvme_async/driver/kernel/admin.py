"""Admin commands: by ioctl to the kernel's controller, or answered by emulation. Commands that
belong to the kernel's driver are refused.

Commands come from the relay on the home loop; each is executed in a task, and in a thread if it
blocks.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

from nvme_async.driver.kernel import emulation
from nvme_async.driver.kernel.nodes import Node
from nvme_async.errors import DeviceError
from nvme_async.native import _kernel
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.identify import IdentifyController
from nvme_async.spec.opcodes import AdminOpcode, Cns, Feature
from nvme_async.spec.registers import Vs
from nvme_async.spec.status import GenericStatus

# Status codes with Do Not Retry.
_DENIED = GenericStatus.OPERATION_DENIED | 0x4000

KERNELS_OWN = frozenset(
    {
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.KEEP_ALIVE,
        AdminOpcode.DOORBELL_BUFFER_CONFIG,
        AdminOpcode.FABRICS,
    }
)
"""Commands that only the controller's driver may send, which is the kernel's."""

KERNELS_FEATURES = frozenset(
    {
        Feature.NUMBER_OF_QUEUES,
        Feature.INTERRUPT_COALESCING,
        Feature.INTERRUPT_VECTOR_CONFIGURATION,
        Feature.ASYNC_EVENT_CONFIGURATION,
        Feature.HOST_MEMORY_BUFFER,
        Feature.KEEP_ALIVE_TIMER,
        Feature.HOST_BEHAVIOR,
        Feature.COMMAND_SET_PROFILE,
    }
)
"""Features that only it may set."""

DESTROYS = frozenset(
    {
        AdminOpcode.FORMAT_NVM,
        AdminOpcode.SANITIZE,
        AdminOpcode.NAMESPACE_MANAGEMENT,
        AdminOpcode.NAMESPACE_ATTACHMENT,
        AdminOpcode.CAPACITY_MANAGEMENT,
        AdminOpcode.SECURITY_SEND,
    }
)
"""Refused while one of the namespaces may only be read."""


class Backend(Protocol):
    """The backend of an admin command."""

    def run(self, command: Command, sqe: bytes, data: bytes | None, nbytes: int) -> tuple[int, int, int, bytes]:
        """(status, DW0, DW1, data of the answer). In a thread; may block."""

    def why(self, command: Command) -> str:
        """More about a refusal of run()'s."""


Learn = Callable[[int, bytes], Awaitable[None]]
"""Reports a namespace: its number, and its Identify page."""


class Emulated:
    """A file's."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def run(self, command: Command, sqe: bytes, data: bytes | None, nbytes: int) -> tuple[int, int, int, bytes]:
        self._node.measure_again()
        status, answer = emulation.answer(self._node, command)
        return status, 0, 0, answer

    def why(self, command: Command) -> str:
        return emulation.NO_CONTROLLER


class Passed:
    """To /dev/nvme0.

    nodes: of the namespaces that this controller object shows, by nsid. search: searches for new
        ones.
    """

    def __init__(self, node: Node, nodes: dict[int, Node], search: Callable[[], None], timeout: float) -> None:
        self._node = node
        self._nodes = nodes
        self._search = search
        self._timeout_ms = int(timeout * 1000)

    def _refusal(self, command: Command) -> str:
        opcode = command.opcode
        if opcode in KERNELS_OWN:
            return "the kernel drives this controller, and this command is reserved for its driver"
        if opcode == AdminOpcode.SET_FEATURES and command.cdw10 & 0xFF in KERNELS_FEATURES:
            return "the kernel drives this controller, and only its driver may set this feature"
        if opcode in DESTROYS:
            return next((node.read_only for node in list(self._nodes.values()) if node.read_only), "")
        return ""

    def why(self, command: Command) -> str:
        return self._refusal(command)

    def version(self) -> Vs:
        """VER of Identify Controller, in the place of the register. DeviceError."""
        command = commands.identify(Cns.CONTROLLER, 0)
        status, dw0, _, page = self.run(command, command.pack(), None, 4096)
        if status:
            code = dw0 & ~_kernel.ERRNO if dw0 & _kernel.ERRNO else 0
            why = os.strerror(code) if code else f"status {status & 0x7FF:#x}"
            failure = DeviceError(f"{self._node.path}: Identify Controller: {why}")
            failure.errno = code
            raise failure
        return Vs.from_int(IdentifyController.decode(page).ver)

    def run(self, command: Command, sqe: bytes, data: bytes | None, nbytes: int) -> tuple[int, int, int, bytes]:
        if self._refusal(command):
            return _DENIED, 0, 0, b""
        of_namespace = command.opcode == AdminOpcode.IDENTIFY and command.cdw10 & 0xFF == Cns.NAMESPACE
        if of_namespace and command.nsid not in self._nodes:
            return 0, 0, 0, bytes(nbytes)  # as an inactive one (Base 2.0, 5.17.2.1): it is not opened here
        self._node.use()
        try:
            buffer = bytearray(nbytes) if nbytes else data
            status, dw0, dw1 = _kernel.passthrough(
                self._node.fd, sqe, buffer, to_host=bool(nbytes), timeout_ms=self._timeout_ms
            )
        finally:
            self._node.done()
        answer = bytes(buffer) if nbytes and buffer is not None else b""
        if not status and command.opcode == AdminOpcode.IDENTIFY and command.cdw10 & 0xFF == Cns.ACTIVE_NAMESPACES:
            answer = self._only_ours(answer)
        return status, dw0, dw1, answer

    def _only_ours(self, page: bytes) -> bytes:
        """The list of active namespaces, without those that have no node here."""
        self._search()
        nsids = [nsid for nsid in struct.unpack("<1024I", page) if nsid in self._nodes]
        return struct.pack(f"<{len(nsids)}I", *nsids).ljust(4096, b"\0")


class AdminService:
    """Takes commands from the relay and answers them. On the home loop.

    on_answer: delivers answers. learn: called with namespaces that were identified, before the
        answer.
    """

    def __init__(
        self,
        relay: _kernel.Relay,
        backend: Backend,
        *,
        on_answer: Callable[[], None],
        learn: Learn,
    ) -> None:
        self._relay = relay
        self._backend = backend
        self._on_answer = on_answer
        self._learn = learn
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self) -> None:
        """Starts the posted commands."""
        for cid, sqe, data, nbytes in self._relay.take():
            task = asyncio.get_running_loop().create_task(
                self._serve(cid, sqe, data, nbytes), name=f"admin command {cid:#x}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, cid: int, sqe: bytes, data: bytes | None, nbytes: int) -> None:
        command = Command.unpack(sqe, admin=True)
        status, dw0, dw1, answer = int(GenericStatus.INTERNAL_ERROR), 0, 0, b""
        try:
            if command.opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
                return  # the kernel has the only one
            if command.opcode == AdminOpcode.ABORT:
                status, dw0 = 0, 1  # not aborted (Base 2.0, 5.1): the kernel has its own timeouts
            else:
                loop = asyncio.get_running_loop()
                status, dw0, dw1, answer = await loop.run_in_executor(
                    None, self._backend.run, command, sqe, data, nbytes
                )
                if not status and command.opcode == AdminOpcode.IDENTIFY and command.cdw10 & 0xFF == Cns.NAMESPACE:
                    await self._learn(command.nsid, answer)
        finally:
            if command.opcode != AdminOpcode.ASYNC_EVENT_REQUEST and self._relay.answer(cid, status, dw0, dw1, answer):
                self._on_answer()
