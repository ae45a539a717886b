"""The target of a command: a temporarily opened controller, or one of another process."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import click
import uvloop

from nvme_async.cli.fabrics import open_device
from nvme_async.errors import CommandError, ControllerError, command_error
from nvme_async.manager.control import ControlClient
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.identify import IdentifyController, IdentifyNamespace, decode_namespace_list
from nvme_async.spec.opcodes import Cns, Direction, command_name
from nvme_async.spec.registers import WITH_MSIX, Cap, Register
from nvme_async.spec.status import status_text

# In click's meta: the path of a control socket, milliseconds for a command, whether commands are
# shown, the output format.
ATTACH = "nvme_async.attach"
TIMEOUT = "nvme_async.timeout"
VERBOSE = "nvme_async.verbose"
OUTPUT = "nvme_async.output"
_MOST = 256 << 10  # bytes of one command to another process


class RemoteNamespace:
    """A namespace of a controller that another process has."""

    nsid: int
    controller: RemoteController
    identify: IdentifyNamespace
    block_size: int
    blocks: int

    def __init__(self, controller: RemoteController, nsid: int, identify: IdentifyNamespace) -> None:
        self.controller, self.nsid, self.identify = controller, nsid, identify
        self.block_size, self.blocks = identify.block_size, identify.nsze
        self.has_metadata: bool = identify.metadata_size > 0
        self.max_blocks: int = max(1, _MOST // identify.block_size)

    async def submit(self, command: Command, buffer: Any = None) -> Completion:
        if command.data_length is None and command.blocks:
            command = attrs.evolve(command, data_length=command.blocks * self.block_size)
        return await self.controller.send(command, buffer)


class RemoteController:
    """A controller that another process has, through the control socket of its manager: commands
    are executed there, so that inspecting the drive doesn't bring it up and down.
    """

    uri: str

    def __init__(self, client: ControlClient, uri: str) -> None:
        self._client, self.uri = client, uri
        self.transport: SimpleNamespace = SimpleNamespace(max_transfer=_MOST)
        self.namespaces: dict[int, RemoteNamespace] = {}
        self.readable: tuple[Register, ...] = WITH_MSIX
        self.identify: IdentifyController

    async def _identify(self, cns: int, nsid: int = 0) -> bytes:
        completion = await self.admin(commands.identify(cns, nsid))
        assert completion.data is not None
        return completion.data

    async def start(self) -> None:
        self.identify = IdentifyController.decode(await self._identify(Cns.CONTROLLER))
        for nsid in decode_namespace_list(await self._identify(Cns.ACTIVE_NAMESPACES)):
            identify = IdentifyNamespace.decode(await self._identify(Cns.NAMESPACE, nsid))
            self.namespaces[nsid] = RemoteNamespace(self, nsid, identify)

    async def admin(self, command: Command, buffer: Any = None, *, unlimited: bool = False) -> Completion:
        return await self.send(command, buffer)

    async def send(self, command: Command, buffer: Any) -> Completion:
        to_host = command.direction is Direction.CONTROLLER_TO_HOST
        data = None if buffer is None or to_host else base64.b64encode(bytes(buffer)).decode()
        nbytes = command.data_length or (len(memoryview(buffer)) if buffer is not None else 0)
        answer = await asyncio.to_thread(
            self._client.call,
            "command",
            uri=self.uri,
            entry=command.pack().hex(),
            admin=command.admin,
            nbytes=nbytes,
            data=data,
        )
        if answer["status"]:
            raise command_error(
                answer["status"],
                opcode=command.opcode,
                nsid=command.nsid,
                lba=command.lba,
                blocks=command.blocks,
                admin=command.admin,
                dw0=answer["dw0"],
                text=status_text(answer["status"] >> 8 & 7, answer["status"] & 0xFF),
                command=command_name(command.opcode, admin=command.admin),
            )
        came = base64.b64decode(answer["data"]) if answer["data"] is not None else None
        if buffer is not None and to_host and came is not None:
            memoryview(buffer)[: len(came)] = came
        return Completion(dw0=answer["dw0"], dw1=answer["dw1"], sqid=0, data=came)

    async def describe_registers(self) -> None:
        """Sets `readable`, and `cap`, which the owner knows even of a transport without registers.
        An owner of release 0.1 doesn't answer: it has PCI functions alone.
        """
        try:
            answer = await asyncio.to_thread(self._client.call, "registers", uri=self.uri)
        except RuntimeError as error:
            if "unknown operation" not in str(error):
                raise
            self.cap = Cap.from_int(await self.read_register(Register.CAP))
            return
        self.readable = tuple(Register(offset) for offset in answer["offsets"])
        self.cap = Cap.from_int(answer["cap"])

    async def read_register(self, offset: int) -> int:
        """A register, read by the owner."""
        answer = await asyncio.to_thread(self._client.call, "register", uri=self.uri, offset=offset)
        value: int = answer["value"]
        return value

    async def reset(self, reason: str = "requested") -> None:
        await asyncio.to_thread(self._client.call, "reset", uri=self.uri)

    async def rescan(self) -> None:
        self.namespaces.clear()
        await self.start()


@asynccontextmanager
async def opened(device: str | None) -> AsyncIterator[Any]:
    """The controller at DEVICE; with --attach that of the manager there, DEVICE being its URI,
    which need not be given if it has but one.
    """
    attach = click.get_current_context().find_root().meta.get(ATTACH)
    if attach is None:
        if device is None:
            raise click.UsageError("a DEVICE is needed, or --attach SOCKET before the command")
        async with open_device(device) as controller:
            yield controller
        return
    with ControlClient(attach) as client:
        known = list(client.call("inspect")["devices"])
        if device is None:
            if len(known) != 1:
                raise click.UsageError(
                    f"the manager at {attach} has {len(known)} devices: {', '.join(known) or 'none'}"
                )
            device = known[0]
        elif device not in known:
            raise click.UsageError(
                f"the manager at {attach} does not have {device}; it has {', '.join(known) or 'none'}"
            )
        remote = RemoteController(client, device)
        try:
            await remote.start()
            yield remote
        except RuntimeError as error:
            raise ControllerError(f"{device}: {error}") from error


def register_reader(controller: Any) -> Callable[[int], Awaitable[int]]:
    """Reads a register by its offset, here or by the process that has the controller."""
    if hasattr(controller, "read_register"):
        remote: Callable[[int], Awaitable[int]] = controller.read_register
        return remote

    async def read(offset: int) -> int:
        value: int = await controller.transport.read_property(Register(offset))
        return value

    return read


async def readable_registers(controller: Any) -> tuple[Register, ...]:
    """Those that register_reader() reads; a controller on a fabric has few."""
    if hasattr(controller, "read_register"):
        await controller.describe_registers()
        return tuple(controller.readable)
    return tuple(controller.transport.readable)


async def capabilities(controller: Any) -> Cap:
    """CAP, which is known also without registers."""
    if hasattr(controller, "read_register"):
        await controller.describe_registers()
    cap: Cap = controller.cap
    return cap


class Watched:
    """A controller or namespace whose commands are shown on stderr (--verbose)."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def namespaces(self) -> Any:
        return {nsid: Watched(namespace) for nsid, namespace in self._inner.namespaces.items()}

    async def _sent(self, send: Callable[..., Awaitable[Any]], command: Command, *more: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = "no completion"
        try:
            completion = await send(command, *more, **named)
            result = f"result {completion.dw0:#x}"
            return completion
        except CommandError as error:
            result = f"status {error.sct << 8 | error.sc:#x}"
            raise
        finally:
            dwords = " ".join(f"cdw{number}={getattr(command, f'cdw{number}'):#x}" for number in range(10, 16))
            spent = (time.perf_counter() - began) * 1e6
            click.echo(
                f"{command.name}: opcode={command.opcode:#04x} nsid={command.nsid:#x} {dwords}: {result}, "
                f"{spent:.0f} us",
                err=True,
            )

    async def admin(self, command: Command, *more: Any, **named: Any) -> Any:
        return await self._sent(self._inner.admin, command, *more, **named)

    async def submit(self, command: Command, *more: Any, **named: Any) -> Any:
        return await self._sent(self._inner.submit, command, *more, **named)


def run(device: str | None, operation: Callable[[Any], Awaitable[Any]]) -> Any:
    """Opens, does it, closes. With --timeout within that time."""
    meta = click.get_current_context().meta
    limit = meta.get(TIMEOUT) or None

    async def whole() -> Any:
        async with opened(device) as controller:
            return await operation(Watched(controller) if meta.get(VERBOSE) else controller)

    async def limited() -> Any:
        try:
            async with asyncio.timeout(None if limit is None else limit / 1000):
                return await whole()
        except TimeoutError as error:
            if limit is None:
                raise
            raise click.ClickException(f"it took longer than --timeout {limit} ms") from error

    return uvloop.run(limited())


def first_namespace(controller: Any, nsid: int | None) -> int:
    """The namespace asked for, by default the first."""
    if nsid is not None:
        return nsid
    if not controller.namespaces:
        raise click.ClickException(f"{controller.uri} has no active namespace; name one with -n")
    chosen: int = min(controller.namespaces)
    return chosen
