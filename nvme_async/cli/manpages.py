"""Man pages and shell completion, from the commands themselves: python -m
nvme_async.cli.manpages FOLDER.

FOLDER becomes a `share`: man/man1, bash-completion/completions, zsh/site-functions and
fish/vendor_completions.d. setup.py puts the files that `make man` made into a wheel.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from nvme_async.cli.grouped import EXIT_CODES, OPENHCL, first_sentence
from nvme_async.cli.main import cli

PROGRAM = "nvme-async"
_VARIABLE = "_NVME_ASYNC_COMPLETE"
COMPLETIONS = {
    "bash": f"bash-completion/completions/{PROGRAM}",
    "zsh": f"zsh/site-functions/_{PROGRAM}",
    "fish": f"fish/vendor_completions.d/{PROGRAM}.fish",
}


def escaped(text: str) -> str:
    """Text for roff: no unescaped backslash, no line that starts with a control character."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.replace("\b", "").split("\n\n"):
        yield ".PP"
        yield escaped(" ".join(paragraph.split()))


def _options(ctx: click.Context, command: click.Command) -> Iterator[str]:
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        yield ".TP"
        yield f"\\fB{escaped(record[0])}\\fR"
        yield escaped(" ".join(record[1].split())) or "\\&"


def _definitions(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    for name, text in rows:
        yield from (".TP", f"\\fB{escaped(name)}\\fR", escaped(text))


def page(command: click.Command, path: str) -> str:
    """One page in roff. `path`: "nvme-async read"."""
    ctx = click.Context(command, info_name=path)
    name = path.replace(" ", "-")
    usage = " ".join(command.collect_usage_pieces(ctx))
    lines = [
        f'.TH "{name.upper()}" "1" "" "nvme_async" "User Commands"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(first_sentence(command))}",
        ".SH SYNOPSIS",
        f".B {escaped(path)}",
        escaped(usage) or "\\&",
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    options = list(_options(ctx, command))
    if options:
        lines += [".SH OPTIONS", *options]
    if command is cli:
        for title, names in cli.sections():
            lines += [f".SS {escaped(title)}"]
            for each in names:
                found = cli.get_command(ctx, each)
                assert found is not None
                lines += [".TP", f"\\fB{escaped(f'{PROGRAM}-{each}')}\\fR(1)", escaped(first_sentence(found))]
        lines += [".SH ENVIRONMENT", *_definitions(iter(OPENHCL))]
        lines += [".SH EXIT STATUS", *_definitions(iter(EXIT_CODES))]
    else:
        lines += [".SH SEE ALSO", f"\\fB{escaped(PROGRAM)}\\fR(1)"]
    return "\n".join(lines) + "\n"


def pages() -> Iterator[tuple[str, str]]:
    """(file name, content) of all."""
    yield f"{PROGRAM}.1", page(cli, PROGRAM)
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield f"{PROGRAM}-{name}.1", page(command, f"{PROGRAM} {name}")


def completion(shell: str) -> str:
    """The script that makes `shell` query the program itself."""
    found = get_completion_class(shell)
    assert found is not None
    return found(cli, {}, PROGRAM, _VARIABLE).source()


def write(folder: Path) -> None:
    """All files, below `folder`."""
    files = {f"man/man1/{name}": content for name, content in pages()}
    files |= {place: completion(shell) for shell, place in COMPLETIONS.items()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
