"""click commands from rows: the common options, numbers in any base, confirmation before
destruction.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from nvme_async.cli.nvme.output import FORMATS, show
from nvme_async.cli.nvme.pages import PAGES, Page
from nvme_async.cli.nvme.target import ATTACH, run
from nvme_async.cli.output import output_option

Option = tuple[tuple[str, ...], str, Any, Any, str]
COMMANDS: dict[str, click.Command] = {}
"""By name; "zns report-zones" is report-zones of the group zns."""


class Number(click.ParamType):  # type: ignore[type-arg]
    """An integer: decimal, 0x…, 0o…, 0b…."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            number = int(str(value), 0)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if number < 0:
            self.fail(f"{value!r} is negative", param, ctx)
        return number


NUMBER = Number()


def option(flags: tuple[str, ...], name: str, kind: Any, default: Any, about: str) -> Callable[[Any], Any]:
    if kind is bool:
        return click.option(*flags, name, is_flag=True, default=default, help=about)
    shown = kind is int and default not in (None, 0, 0xFFFF_FFFF)
    return click.option(
        *flags, name, type=NUMBER if kind is int else kind, default=default, show_default=shown, help=about
    )


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        click.option("-v", "--verbose", "verbose", is_flag=True, help="Say more."),
        click.option("-H", "--human-readable", "human", is_flag=True, help="Explain fields."),
        click.option("-b", "--raw-binary", "raw", is_flag=True, help="The same as --output-format binary."),
        output_option(*FORMATS[2:], help="json has nvme-cli's keys."),
        click.argument("device", required=False),
    ):
        function = decorate(function)
    return function


def page_command(name: str, page: Page) -> click.Command:
    """The command of a row of `pages`."""

    def callback(device: str | None, output: str, raw: bool, human: bool, verbose: bool, **options: Any) -> None:
        async def operation(controller: Any) -> bytes:
            return await page.read(controller, options)

        data = run(device, operation)
        try:
            value = page.decode(data)
        except ValueError as error:
            raise click.ClickException(f"the controller's response is invalid: {error}") from error
        if page.shape is not None and not human:
            value = page.shape(value, data) if name == "ns-descs" else page.shape(value)
        show("binary" if raw else output, data, value)

    function = _common(callback)
    for one in reversed(page.options):
        function = option(*one)(function)
    return click.command(name.rsplit(" ", 1)[-1], help=page.about)(function)


def command(name: str, *options: Option, output: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function (device, **options) as a command; its docstring is the help. With
    `output` it also gets `output` (raw is folded into it), `human` and `verbose`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def callback(**arguments: Any) -> None:
            if output:
                if arguments.pop("raw"):
                    arguments["output"] = "binary"
                arguments.pop("verbose")
            function(**arguments)

        callback.__doc__ = function.__doc__
        made: Callable[..., Any] = callback
        made = _common(made) if output else click.argument("device", required=False)(made)
        for one in reversed(options):
            made = option(*one)(made)
        COMMANDS[name] = click.command(name.rsplit(" ", 1)[-1], help=function.__doc__)(made)
        return function

    return register


FORCE: Option = (("--force",), "force", bool, False, "Don't ask.")


def ask(device: str | None, what: str, force: bool) -> None:
    """Asks before something is destroyed, naming the drive. A drive that another process uses is
    refused.
    """
    attached = click.get_current_context().find_root().meta.get(ATTACH)
    if attached and not force:
        raise click.ClickException(
            f"{device or 'the drive'} is in use by the process at {attached}: {what} needs --force"
        )
    if force:
        return
    if not sys.stdin.isatty():
        raise click.ClickException(f"{what} of {device} destroys data: confirm with --force")
    click.confirm(f"{what} of {device}: its data will be lost. Continue?", abort=True, err=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[float], None]]:
    """A line on a terminal's stderr: progress, and the remaining time."""
    began = time.monotonic()
    terminal = sys.stderr.isatty()

    def say(fraction: float) -> None:
        if not terminal:
            return
        spent = time.monotonic() - began
        left = f", {spent * (1 - fraction) / fraction:.0f} s left" if 0 < fraction < 1 else ""
        click.echo(f"\r{what}: {fraction:4.0%}{left}\033[K", err=True, nl=False)

    try:
        yield say
    finally:
        if terminal:
            click.echo(err=True)


def execute(device: str | None, operation: Callable[[Any], Awaitable[Any]]) -> Any:
    return run(device, operation)


for _name, _page in PAGES.items():
    COMMANDS[_name] = page_command(_name, _page)
