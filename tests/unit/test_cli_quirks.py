"""--quirks: on each command that opens or shows a device, and what it does there."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from fake_pci import FakeSystem

from nvme_async.cli.main import COMMANDS, cli
from nvme_async.device.quirks import COMMAND_LINE

DRIVE = "0000:00:05.0"
WITHOUT = {"bench", "bind", "unbind", "emulate", "keeper", "discover", "top", "gen-tls-key", "check-tls-key"}
"""fio's command line; the rest opens no device."""


def leaves(command: click.Command) -> list[click.Command]:
    members = getattr(command, "commands", {})
    return [leaf for member in members.values() for leaf in leaves(member)] if members else [command]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - WITHOUT))
def test_each_command_that_opens_or_shows_a_device_has_it(name: str) -> None:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    for leaf in leaves(found):
        options = [option for one in leaf.params for option in one.opts]
        assert options.count("--quirks") == 1, leaf.name


def run(*arguments: str, system: FakeSystem | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, obj=system)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--quirks", "+no-doorbell-buffer", "inspect", "emulated:size=1MiB", "-o", "json"),
        ("inspect", "emulated:size=1MiB", "-o", "json", "--quirks", "+no-doorbell-buffer"),
        ("inspect", "emulated:size=1MiB", "-o", "json", "--quirks", "*=+no-doorbell-buffer"),
        ("--quirks", "none", "inspect", "emulated:size=1MiB", "-o", "json", "--quirks", "no-doorbell-buffer"),
    ],
)
def test_inspect(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    (device,) = json.loads(result.output)["devices"].values()
    assert device["controller"]["quirks"] == {"no-doorbell-buffer": COMMAND_LINE}


def test_a_command_of_nvme_cli_obeys_it() -> None:
    """The driver refuses a controller with entries of 128 bytes: so the quirk has arrived."""
    assert run("id-ctrl", "emulated:size=1MiB").exit_code == 0
    result = run("id-ctrl", "emulated:size=1MiB", "--quirks", "large-sqe")
    assert result.exit_code != 0
    assert "128 bytes" in str(result.exception)
    result = run("read", "emulated:size=1MiB", "--quirks", "large-sqe", "-z", "4096", "-d", "/dev/null")
    assert "128 bytes" in str(result.exception)
    assert run("id-ctrl", "emulated:size=1MiB").exit_code == 0  # it ends with its command


@pytest.mark.parametrize("before", [True, False])
def test_list_and_doctor(tmp_path: Path, before: bool) -> None:
    system = FakeSystem(tmp_path)
    system.add_function(DRIVE, 5)

    def shown(command: str, *more: str, quirks: str) -> str:
        option = ("--quirks", quirks)
        return run(*(option if before else ()), command, *more, *(() if before else option), system=system).output

    (entry,) = json.loads(shown("list", "-o", "json", quirks="1b36:0010=+single-vector"))
    assert entry["quirks"]["single-vector"] == COMMAND_LINE
    assert "bogus-ids" in entry["quirks"]
    (entry,) = json.loads(shown("list", "-o", "json", quirks="none"))
    assert entry["quirks"] == {}
    words = f"pci:{DRIVE} gets single-vector, because of: {COMMAND_LINE}"
    found = json.loads(shown("doctor", "-o", "json", quirks="single-vector"))
    assert [one["message"] for one in found if one["check"] == "quirks"] == [words]


@pytest.mark.parametrize("text", ["single", "*=single", "1:2:3=none"])
def test_an_invalid_override_is_a_usage_error(text: str) -> None:
    for arguments in (
        ("--quirks", text, "list"),
        ("list", "--quirks", text),
        ("id-ctrl", "emulated:", "--quirks", text),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert "quirk" in result.output
