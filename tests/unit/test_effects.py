"""What admin commands may change, according to the specification and the controller's own
log.
"""

from __future__ import annotations

import struct

import pytest

from nvme_async.driver.effects import ALL, ITS_NAMESPACE, NONE, Effect, effect_of
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.logs import CommandsSupported
from nvme_async.spec.opcodes import NSID_ALL, Feature

CSUPP, LBCC, NCC, NIC, CCC = (1 << bit for bit in range(5))


def log(opcode: int, bits: int) -> CommandsSupported:
    page = bytearray(4096)
    struct.pack_into("<I", page, 4 * opcode, bits)
    return CommandsSupported.decode(page)


def vendor(opcode: int = 0xC5, nsid: int = 1) -> Command:
    return Command(opcode=opcode, nsid=nsid, admin=True, data_length=0)


@pytest.mark.parametrize(
    ("command", "effect"),
    [
        (commands.format_nvm(1, 0), Effect(ITS_NAMESPACE, namespaces=True)),
        (commands.format_nvm(NSID_ALL, 0), Effect(ALL, namespaces=True)),
        (commands.sanitize(2), Effect(ALL, namespaces=True)),
        (commands.namespace_management(0), Effect(NONE, namespaces=True)),
        (commands.namespace_management(1, nsid=3), Effect(ITS_NAMESPACE, namespaces=True)),
        (commands.namespace_management(1, nsid=NSID_ALL), Effect(ALL, namespaces=True)),
        (commands.namespace_attachment(3, 1), Effect(ITS_NAMESPACE, namespaces=True)),
        (commands.firmware_commit(1, 3), Effect(ALL, namespaces=True, controller=True)),
        (commands.firmware_commit(1, 1), Effect()),
        (commands.capacity_management(1), Effect(ALL, namespaces=True, controller=True)),
        (commands.set_features(Feature.HOST_BEHAVIOR), Effect(ALL, namespaces=True, controller=True)),
        (commands.set_features(Feature.COMMAND_SET_PROFILE), Effect(ALL, namespaces=True, controller=True)),
        (commands.set_features(Feature.NAMESPACE_WRITE_PROTECTION, nsid=1), Effect(namespaces=True)),
        (commands.set_features(Feature.VOLATILE_WRITE_CACHE), Effect()),
        (commands.set_features(0xF0), Effect()),
        (commands.security_send(1, 0, 512), Effect()),
        (commands.security_receive(1, 0, 512), Effect()),
        (commands.identify(1), Effect()),
        (vendor(), Effect()),
    ],
    ids=lambda value: value.name if isinstance(value, Command) else "",
)
def test_without_a_log_the_specification_decides(command: Command, effect: Effect) -> None:
    assert effect_of(command) == effect


def test_format_may_affect_all_namespaces() -> None:
    assert effect_of(commands.format_nvm(1, 0), fna=1).holds == ALL
    assert effect_of(commands.format_nvm(1, 0), fna=2).holds == ITS_NAMESPACE
    assert effect_of(commands.format_nvm(1, 0, ses=1), fna=2).holds == ALL


@pytest.mark.parametrize(
    ("bits", "effect"),
    [
        (CSUPP, Effect()),
        (CSUPP | 1 << 16, Effect(ITS_NAMESPACE)),
        (CSUPP | 2 << 16, Effect(ALL)),
        (CSUPP | 5 << 16, Effect(ALL)),  # reserved: the strongest possible meaning
        (CSUPP | LBCC, Effect(ITS_NAMESPACE)),
        (CSUPP | NCC, Effect(ITS_NAMESPACE, namespaces=True)),
        (CSUPP | NIC, Effect(namespaces=True)),
        (CSUPP | CCC, Effect(controller=True)),
        (CSUPP | LBCC | NCC | NIC | CCC | 2 << 16, Effect(ALL, namespaces=True, controller=True)),
        (2 << 16, Effect()),  # not supported: the rest says nothing
    ],
)
def test_a_vendors_command_has_the_effects_of_the_log(bits: int, effect: Effect) -> None:
    assert effect_of(vendor(), log(0xC5, bits)) == effect


def test_a_command_without_a_namespace_affects_all() -> None:
    assert effect_of(vendor(nsid=0), log(0xC5, CSUPP | 1 << 16)).holds == ALL
    assert effect_of(vendor(nsid=NSID_ALL), log(0xC5, CSUPP | LBCC)).holds == ALL


def test_the_log_only_adds_to_the_specification() -> None:
    format_ = commands.format_nvm(1, 0)
    assert effect_of(format_, log(0x80, CSUPP)) == effect_of(format_)
    assert effect_of(format_, log(0x80, CSUPP | 2 << 16 | CCC)) == Effect(ALL, namespaces=True, controller=True)


def test_reading_commands_have_no_effects_despite_the_log() -> None:
    bits = CSUPP | LBCC | NCC | NIC | CCC | 2 << 16
    for command in (
        commands.identify(1),
        commands.get_log_page(2, 512),
        commands.get_features(6),
        commands.abort(1, 1),
    ):
        assert not effect_of(command, log(command.opcode, bits))
