"""Admin commands that change namespaces or the controller, and the driver's precautions.

Format NVM, Namespace Management, Sanitize, a firmware activation or a vendor's command may change
the meaning of an earlier request: its block size, its namespace, its largest transfer. The
specification and, if the controller has it, the Commands Supported and Effects log (LID 05h; Base
2.0, 5.16.1.6) define the effects of a command. Affected I/O is held on all loops and drained, then
the command is sent, then Identify is read again, and only then I/O continues. Requests that were
made for an old format end with NamespaceChanged; they are never sent.

On the controller's home loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import attrs

from nvme_async.driver.context import ControllerContext
from nvme_async.driver.lifecycle import State
from nvme_async.driver.namespace import Namespace
from nvme_async.driver.scanner import Scanner
from nvme_async.errors import CommandError, ControllerReplaced, ControllerTimeout, NvmeError
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.logs import CommandsSupported
from nvme_async.spec.opcodes import (
    NSID_ALL,
    AdminOpcode,
    Feature,
    FirmwareCommitAction,
    LogPage,
    NamespaceManagementAction,
)

log: logging.Logger = logging.getLogger("nvme_async")


@attrs.frozen
class Effect:
    """The possible effects of a command.

    Attributes:
        holds: the namespaces whose I/O must not be in flight meanwhile: none, the command's, or
            all.
        namespaces: the active namespaces must be read again.
        controller: Identify Controller must be read again.
    """

    holds: int = 0
    namespaces: bool = False
    controller: bool = False

    def __or__(self, other: Effect) -> Effect:
        return Effect(
            max(self.holds, other.holds), self.namespaces or other.namespaces, self.controller or other.controller
        )

    def __bool__(self) -> bool:
        return self != Effect()


NONE, ITS_NAMESPACE, ALL = 0, 1, 2

# They change nothing, regardless of a controller's log.
_HARMLESS = frozenset(
    {
        AdminOpcode.IDENTIFY,
        AdminOpcode.GET_LOG_PAGE,
        AdminOpcode.GET_FEATURES,
        AdminOpcode.ABORT,
        AdminOpcode.ASYNC_EVENT_REQUEST,
        AdminOpcode.KEEP_ALIVE,
    }
)
_EVERYTHING = Effect(ALL, namespaces=True, controller=True)
_FEATURES = {
    Feature.HOST_BEHAVIOR: _EVERYTHING,  # LBA formats beyond the first 16 (LBAFEE)
    Feature.COMMAND_SET_PROFILE: _EVERYTHING,
    Feature.NAMESPACE_WRITE_PROTECTION: Effect(namespaces=True),
}
# FNA bit 0: a format applies to all namespaces; bit 1: so does a secure erase.
_FORMATS_ALL, _ERASES_ALL = 1 << 0, 1 << 1


def _known(command: Command, fna: int) -> Effect:
    """The effects of a command according to the specification."""
    match command.opcode:
        case AdminOpcode.FORMAT_NVM:
            erases = command.cdw10 >> 9 & 7
            whole = fna & _FORMATS_ALL or (erases and fna & _ERASES_ALL)
            return Effect(ALL if whole else ITS_NAMESPACE, namespaces=True)
        case AdminOpcode.SANITIZE:
            return Effect(ALL, namespaces=True)
        case AdminOpcode.NAMESPACE_MANAGEMENT:
            creates = command.cdw10 & 0xF == NamespaceManagementAction.CREATE
            return Effect(NONE if creates else ITS_NAMESPACE, namespaces=True)
        case AdminOpcode.NAMESPACE_ATTACHMENT:
            return Effect(ITS_NAMESPACE, namespaces=True)
        case AdminOpcode.CAPACITY_MANAGEMENT:
            return Effect(ALL, namespaces=True, controller=True)
        case AdminOpcode.VIRTUALIZATION_MANAGEMENT:
            return Effect(controller=True)
        case AdminOpcode.FIRMWARE_COMMIT:
            # Other actions take effect at a reset, which reads everything again anyway.
            at_once = command.cdw10 >> 3 & 7 == FirmwareCommitAction.REPLACE_AND_ACTIVATE_NOW
            return _EVERYTHING if at_once else Effect()
        case AdminOpcode.SET_FEATURES:
            fid = command.cdw10 & 0xFF
            return _FEATURES.get(Feature(fid), Effect()) if fid in Feature._value2member_map_ else Effect()
    return Effect()


def effect_of(command: Command, supported: CommandsSupported | None = None, *, fna: int = 0) -> Effect:
    """What an admin command may change. supported: the controller's log, if it has one. fna: Format
    NVM Attributes of Identify Controller.

    An empty Effect (false) for a command that changes nothing that I/O depends on.
    """
    if command.opcode in _HARMLESS:
        return Effect()
    effect = _known(command, fna)
    if supported is not None:
        said = supported.admin(command.opcode)
        if said.csupp:
            holds = ALL if said.cse >= 2 else ITS_NAMESPACE if said.cse or said.lbcc or said.ncc else NONE
            effect |= Effect(holds, namespaces=bool(said.ncc or said.nic), controller=bool(said.ccc))
    if effect.holds == ITS_NAMESPACE and command.nsid in (0, NSID_ALL):
        effect |= Effect(ALL)
    return effect


class Effects:
    """Admin commands of one controller, each with its effects.

    Attributes:
        supported: Commands Supported and Effects, None where the controller has no such log.
        running: names of the commands that I/O is held for.
    """

    def __init__(self, controller: ControllerContext, scanner: Scanner) -> None:
        self._controller = controller
        self._scanner = scanner
        self.supported: CommandsSupported | None = None
        self.running: list[str] = []
        self._asked = False  # for the log; a restored controller wasn't
        self._tasks: set[asyncio.Task[Completion]] = set()

    async def read(self) -> None:
        """Reads the log, if Identify Controller reports one (LPA bit 1). Raises CommandError,
        ControllerError; then only the specification counts.
        """
        controller = self._controller
        self.supported = None
        self._asked = True
        if not controller.identify.lpa & 1 << 1:
            return
        page = await controller._submit_admin(commands.get_log_page(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096))
        assert page.data is not None
        self.supported = CommandsSupported.decode(page.data)

    def of(self, command: Command) -> Effect:
        """The effects of that command on this controller."""
        return effect_of(command, self.supported, fna=self._controller.identify.fna)

    async def submit(self, command: Command, buffer: Any = None, tag: int = 0, unlimited: bool = False) -> Completion:
        """Sends an admin command of the user's. Its effects are over when this returns.

        If the caller is cancelled, the command and its follow-up steps continue. ControllerTimeout
        if in-flight I/O doesn't end within its limit; then the command was not sent.
        """
        if not isinstance(command, Command) or command.opcode in _HARMLESS:
            return await self._send(command, buffer, tag, unlimited)
        if not self._asked:
            try:
                await self.read()
            except CommandError as error:
                log.warning("%s: the Commands Supported and Effects log can't be read: %s", self._controller.uri, error)
        effect = self.of(command)
        if not effect:
            return await self._send(command, buffer, tag, unlimited)
        task = self._controller.loop.create_task(
            self._with_effects(effect, command, buffer, tag, unlimited), name=f"{self._controller.uri} {command.name}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, task: asyncio.Task[Completion]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller's, if it still waits

    async def _send(self, command: Command, buffer: Any, tag: int, unlimited: bool) -> Completion:
        return await self._controller._submit_admin(command, buffer, tag=tag, internal=unlimited, user=True)

    async def _with_effects(
        self, effect: Effect, command: Command, buffer: Any, tag: int, unlimited: bool
    ) -> Completion:
        controller = self._controller
        async with self._scanner.alone():
            concerned = self._concerned(effect, command)
            self.running.append(command.name)
            try:
                # This must be saved before the command is sent: otherwise a successor would trust
                # the saved namespaces.
                controller._changed(strictly=True)
                with _Held(concerned) as held:
                    await self._drain(command, concerned)
                    try:
                        return await self._send(command, buffer, tag, unlimited)
                    finally:
                        # Also after an error: it is unknown how far the controller got.
                        held.changed = True
                        held.changed = not await self._read_again(effect, concerned)
            finally:
                self.running.remove(command.name)
                if controller.state is State.READY:
                    controller._changed()
                await controller.transport.queues.go_on()

    async def of_another(self) -> None:
        """Reads again what an admin command of another process may have changed. Namespaces that
        can't be read take no requests until they can.
        """
        async with self._scanner.alone():
            namespaces = list(self._controller.namespaces.values())
            # A reset reads everything anyway.
            if not await self._read_again(_EVERYTHING, namespaces) and self._controller.state is State.READY:
                for namespace in namespaces:
                    namespace._unknown()

    def _concerned(self, effect: Effect, command: Command) -> list[Namespace]:
        return [
            namespace
            for nsid, namespace in self._controller.namespaces.items()
            if effect.holds == ALL or (effect.holds == ITS_NAMESPACE and nsid == command.nsid)
        ]

    async def _drain(self, command: Command, concerned: list[Namespace]) -> None:
        controller = self._controller
        if not concerned:
            return
        await controller.transport.queues.go_on(strictly=True)  # from here on every loop has noticed the hold
        options = controller.options
        limit = options.command_timeout + options.abort_timeout if options.command_timeout else options.drain_timeout
        if not await controller.transport.queues.drain(limit, frozenset(namespace.nsid for namespace in concerned)):
            raise ControllerTimeout(
                f"{controller.uri}: {command.name} was not sent: I/O to the namespaces that it changes did not "
                f"end within {limit:g} s"
            )

    async def _read_again(self, effect: Effect, concerned: list[Namespace]) -> bool:
        """True if everything that may have changed is known again. The rest is read later."""
        controller = self._controller
        if controller.state is not State.READY:
            return False
        try:
            if effect.controller:
                await self._scanner.controller_again()
            if effect.namespaces or effect.holds:
                return await self._scanner.namespaces_again(concerned)
        except ControllerReplaced as error:
            controller._fail(error)
            return False
        except NvmeError as error:
            log.warning("%s: %s", controller.uri, error)
            self._scanner.later(str(error))
            return False
        return True

    @property
    def unverified(self) -> bool:
        """Is the state of the namespaces currently unknown? Any of them may have changed."""
        return bool(self.running) or any(
            namespace.geometry.expired for namespace in self._controller.namespaces.values()
        )

    def inspect(self) -> dict[str, Any]:
        return {"log": self.supported is not None, "running": list(self.running)}


class _Held:
    """Requests of these namespaces are not sent within the block.

    changed: their state is unknown at the end; then their requests end with an error, and new ones
        fail until Identify has been read.
    """

    def __init__(self, namespaces: list[Namespace]) -> None:
        self._namespaces = [(namespace, namespace.geometry) for namespace in namespaces]
        self.changed = False

    def __enter__(self) -> _Held:
        for _, geometry in self._namespaces:
            geometry.hold()
        return self

    def __exit__(self, *_: object) -> None:
        for namespace, geometry in self._namespaces:
            if self.changed and namespace.geometry is geometry:
                namespace._unknown()
            geometry.release()
