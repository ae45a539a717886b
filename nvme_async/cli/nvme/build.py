"""click commands from rows: the common options, numbers in any base, confirmation before
destruction.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from nvme_async.cli.nvme.explain import explanations
from nvme_async.cli.nvme.output import FORMATS, show
from nvme_async.cli.nvme.page import Option, Page
from nvme_async.cli.nvme.pages import PAGES
from nvme_async.cli.nvme.target import ATTACH, OUTPUT, TIMEOUT, VERBOSE, run
from nvme_async.cli.output import output_option

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


_VERBOSE = (("-v", "--verbose"), "verbose", bool, False, "Show the commands that are sent, and more details.")
_TIMEOUT = (("-t", "--timeout"), "timeout", int, None, "Milliseconds for everything.  [default: the driver's limits]")
_HUMAN = (("-H", "--human-readable"), "human", bool, False, "Explain fields.")
_RAW = (("-b", "--raw-binary"), "raw", bool, False, "The same as --output-format binary.")


def _decorated(made: Callable[..., Any], options: tuple[Option, ...], shared: tuple[Option, ...], formats: bool) -> Any:
    """The options of a command before those that all have; a letter belongs to the first that has
    it.
    """
    taken = {flag for flags, *_ in options for flag in flags}
    made = click.argument("device", required=False)(made)
    for flags, name, kind, default, about in reversed(shared):
        free = tuple(flag for flag in flags if flag not in taken)
        if free:
            made = option(free, name, kind, default, about)(made)
    made = output_option(*(FORMATS[2:] if formats else ()), help="json has nvme-cli's keys.")(made)
    for one in reversed(options):
        made = option(*one)(made)
    return made


def _settings(arguments: dict[str, Any]) -> None:
    """Takes out of the arguments what `target.run` and `say` need."""
    meta = click.get_current_context().meta
    meta[TIMEOUT] = arguments.pop("timeout", None)
    meta[VERBOSE] = arguments.get("verbose", False)
    meta[OUTPUT] = arguments.get("output", "normal")


def page_command(name: str, page: Page) -> click.Command:
    """The command of a row of `pages`."""

    def callback(device: str | None, output: str, raw: bool, **options: Any) -> None:
        _settings(options | {"output": output})
        options.pop("timeout", None)
        # nvme-cli explains fields with either.
        options["human"] = options["human"] or options["verbose"]

        async def operation(controller: Any) -> bytes:
            return await page.read(controller, options)

        data = run(device, operation)
        try:
            value = page.shape(data, options)
        except (ValueError, struct.error) as error:
            raise click.ClickException(f"the controller's response is invalid: {error}") from error
        bits = explanations(page.bits) if options["human"] else None
        written = page.text
        text = None if written is None else lambda: written(data, options, bits or {})
        show("binary" if raw else output, data, value, text=text, bits=bits)

    made = _decorated(callback, page.options, (_VERBOSE, _HUMAN, _RAW, _TIMEOUT), True)
    return click.command(name.rsplit(" ", 1)[-1], help=page.about)(made)


def command(name: str, *options: Option, output: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function (device, **options) as a command; its docstring is the help. With
    `output` it also gets `output` (raw is folded into it) and `human`; otherwise it reports with
    `say`.
    """
    named = {row[1] for row in options}

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def callback(**arguments: Any) -> None:
            _settings(arguments)
            verbose = arguments["verbose"] if "verbose" in named else arguments.pop("verbose", False)
            if output:
                if "raw" not in named and arguments.pop("raw", False):
                    arguments["output"] = "binary"
                if "human" not in named:
                    arguments["human"] = arguments["human"] or verbose
            else:
                arguments.pop("output")
            function(**arguments)

        shared = (_VERBOSE, _HUMAN, _RAW, _TIMEOUT) if output else (_VERBOSE, _TIMEOUT)
        callback.__doc__ = function.__doc__
        made = _decorated(callback, options, shared, output)
        COMMANDS[name] = click.command(name.rsplit(" ", 1)[-1], help=function.__doc__)(made)
        return function

    return register


def say(message: str) -> None:
    """What an operation reports: a line, or nvme-cli's {"result": line}."""
    if click.get_current_context().meta.get(OUTPUT) == "json":
        click.echo(json.dumps({"result": message}, indent=2))
    else:
        click.echo(message)


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
def builder_arguments() -> Iterator[None]:
    """Arguments that a command's builder refuses are errors of use."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


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
