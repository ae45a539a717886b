"""Command and Feature Lockdown (Base 2.1, 8.1.5): commands and features that a controller executes
for none of its hosts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from nvme_async.driver.management.logs import read_log
from nvme_async.errors import ConfigurationError
from nvme_async.spec import commands
from nvme_async.spec.identify import Oacs
from nvme_async.spec.opcodes import LogPage
from nvme_async.spec.rare_logs import LockdownList

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller


class LockdownScope(IntEnum):
    """The kind of what is prohibited: opcodes of admin commands, or features for Set Features."""

    COMMAND = 0
    FEATURE = 2


Interface = Literal["admin", "both", "out-of-band"]
_INTERFACES: tuple[Interface, ...] = ("admin", "both", "out-of-band")
Contents = Literal["possible", "admin", "out-of-band"]
_CONTENTS: tuple[Contents, ...] = ("possible", "admin", "out-of-band")


def _check(controller: Controller) -> None:
    if Oacs.LOCKDOWN not in controller.identify.admin_commands:
        raise ConfigurationError(f"{controller.uri}: the controller has no Lockdown command (OACS)")


async def lock_down(
    controller: Controller,
    scope: LockdownScope,
    target: int,
    prohibit: bool = True,
    *,
    interface: Interface = "admin",
) -> None:
    """Prohibits a command or feature, until it is allowed again or the drive loses power.

    target: opcode or feature identifier. interface: on the admin queue, on the out-of-band
    management interface, or both. CommandError if the controller can't prohibit it.
    """
    _check(controller)
    if interface not in _INTERFACES:
        raise ConfigurationError(f"interface is {interface!r}, not one of {', '.join(_INTERFACES)}")
    await controller.admin(commands.lockdown(scope, target, prohibit, _INTERFACES.index(interface)))


async def locked_down(controller: Controller, scope: LockdownScope, contents: Contents = "admin") -> tuple[int, ...]:
    """The opcodes or feature identifiers that are prohibited on the admin queue, or out of band; or
    those that can be ("possible").
    """
    _check(controller)
    if contents not in _CONTENTS:
        raise ConfigurationError(f"contents is {contents!r}, not one of {', '.join(_CONTENTS)}")
    lsp = scope | _CONTENTS.index(contents) << 4
    page = await read_log(controller, LogPage.COMMAND_AND_FEATURE_LOCKDOWN, LockdownList.SIZE, lsp=lsp)
    return LockdownList.decode(page).identifiers
