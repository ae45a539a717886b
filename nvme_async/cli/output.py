"""-o, --output-format: the same option for all commands that answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OLDER = {"tree": "normal"}


def output_option(*more: str, help: str = "normal is for people, json for programs.") -> Callable[..., Any]:
    """normal, json, and what a command has besides; the parameter is `output`. `--output` is the
    name that some commands had before.
    """
    formats = ("normal", "json", *more)

    def check(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
        value = _OLDER.get(value, value)
        if value not in formats:
            raise click.BadParameter(f"{value!r} is not one of {', '.join(formats)}")
        return value

    return click.option(
        "-o",
        "--output-format",
        "--output",
        "output",
        metavar="|".join(formats),
        default="normal",
        show_default=True,
        callback=check,
        help=help,
        shell_complete=lambda ctx, parameter, incomplete: [name for name in formats if name.startswith(incomplete)],
    )
