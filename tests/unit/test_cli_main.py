"""The command line as a whole: help, exit codes, and errors that are one line."""

from __future__ import annotations

import sys

import click
import pytest

from nvme_async.cli.main import COMMANDS, cli, main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["whatever it is called", *arguments])
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else -1
    return 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["read"], 2, "Missing argument 'DEVICE'. (see nvme-async read --help)"),
        (["nosuch"], 2, "No such command 'nosuch'. (see nvme-async --help)"),
        (["read", "--nonsense", "emulated:"], 2, "No such option"),
        (["read", "emulated:size=1MiB", "-s", "x"], 2, "'x' is not a block number"),
        (["--keep-alive", "perhaps", "list"], 2, "perhaps"),
        (["id-ctrl", "nonsense:x"], 2, "must begin with one of pci:, vfio-user:, emulated:"),
        (["id-ctrl", "emulated:siz=1"], 2, "unknown option 'siz'"),
        (["id-ctrl", "emulated:size=1"], 2, "size"),
        (["id-ctrl", "vfio-user:/nonexistent/socket"], 1, "cannot connect to vfio-user socket /nonexistent/socket"),
        (["id-ns", "emulated:size=1MiB", "-n", "9"], 1, "no active namespace 9"),
        (["inspect", "/nonexistent/socket"], 1, "/nonexistent/socket"),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert run(monkeypatch, *arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("nvme-async: ")
    assert message in err


def test_help_names_every_command_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: nvme-async [OPTIONS] COMMAND")
    assert "Exit codes: 0 done" in text
    listed = [line.split()[0] for line in text.partition("Commands:\n")[2].splitlines()]
    assert listed == sorted(COMMANDS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"bench"}))
def test_every_command_and_option_has_a_help_text(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("output", "output_format"):
            assert parameter.help, f"{command} {parameter.opts}"
