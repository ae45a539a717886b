"""The command line as a whole: help, exit codes, and errors that are one line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest

from nvme_async.cli.grouped import OPENHCL, SECTIONS
from nvme_async.cli.main import COMMANDS, cli, main
from nvme_async.keepalive import config


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


def test_help_names_every_command_once_in_its_section_with_a_whole_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: nvme-async [OPTIONS] COMMAND")
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Options:")[2], "no summary is cut"
    commands = text[text.index("\nDrives:\n") : text.index("OpenHCL's names, from the environment:")]
    listed = [line.split()[0] for line in commands.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(listed) == sorted(COMMANDS)
    for title in SECTIONS:
        assert f"\n{title}:\n" in text
    assert "OPENHCL_" not in text[: text.index("OpenHCL's names")]
    assert "  130  Interrupted." in text


def test_help_lists_every_environment_variable() -> None:
    names = set(re.findall(r"OPENHCL_\w+", Path(config.__file__).read_text()))
    assert {name for name, _ in OPENHCL} == names


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"bench"}))
def test_the_output_option_is_the_same_everywhere(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    for parameter in found.params:
        if parameter.name == "output":
            assert parameter.opts == ["-o", "--output-format", "--output"]
            assert parameter.default == "normal"
            assert str(parameter.metavar).startswith("normal|json")
            assert run_check(found, "-o", "nonsense").endswith("'nonsense' is not one of normal, json")


def run_check(command: click.Command, *arguments: str) -> str:
    """The error for an unknown output format."""
    option = next(parameter for parameter in command.params if parameter.name == "output")
    with pytest.raises(click.BadParameter) as caught:
        option.callback(click.Context(command), option, arguments[1])  # type: ignore[misc]
    return caught.value.message.removesuffix(", prometheus").removesuffix(", binary, tabular")


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"bench"}))
def test_every_command_and_option_has_a_help_text(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("output", "output_format"):
            assert parameter.help, f"{command} {parameter.opts}"
