"""nvme-async keeper: a process that holds controllers' descriptors between two drivers, and its
deposits.
"""

from __future__ import annotations

import json
import os
import sys

import attrs
import click

import nvme_async.keepalive.keeper as program
from nvme_async.cli.output import output_option
from nvme_async.keepalive.keeper.client import Deposit, KeeperClient

_STATES = {
    "owned": "its driver, process {pid}, is alive",
    "orphaned": "waits for a successor",
    "claimed": "taken over by process {pid}, which has not deposited yet",
    "reserved": "process {pid} is about to bring it up",
}


def status_text(deposits: list[Deposit]) -> str:
    """One line for each controller."""
    if not deposits:
        return "nothing held"
    lines = []
    for deposit in deposits:
        line = (
            f"{deposit.name}: {_STATES[deposit.state].format(pid=deposit.pid)} ({deposit.seconds:.0f} s);"
            f" {deposit.fds} descriptors, {deposit.deposits} deposits, {deposit.successors} successors"
        )
        lines.append(line + (f", {deposit.waiting} waiting" if deposit.waiting else ""))
    return "\n".join(lines)


@click.command()
@click.option("--socket", "path", metavar="PATH", required=True, help="Socket that drivers connect to.")
@click.option("--quiet", is_flag=True, help="Log warnings and errors only.")
@click.option("--status", is_flag=True, help="Show what the keeper at PATH holds, then exit.")
@output_option(help="Format of --status.")
@click.option("--drop", metavar="URI", help="Release a controller that waits for a successor, then exit.")
def keeper(path: str, quiet: bool, status: bool, output: str, drop: str | None) -> None:
    """Hold controllers while their drivers are replaced, restarted or killed.

    Drivers deposit with nvme_async.open(uri, keeper=PATH). While a driver is alive no other process
    gets its controller; when it has died, the next one to open the same URI takes the running
    controller over. Serves until SIGTERM or SIGINT; held controllers without a driver are then
    reset by their device.
    """
    if not status and drop is None:
        # From here on it only uses the standard library, so no change of this package can break it.
        arguments = ["--socket", path] + (["--quiet"] if quiet else [])
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-I", "-S", os.path.dirname(program.__file__), *arguments])
    with KeeperClient(path) as client:
        if drop is not None and not client.drop(drop, force=True):
            raise click.ClickException(f"the keeper doesn't hold {drop}")
        if status:
            deposits = client.deposits()
            as_json = json.dumps([attrs.asdict(deposit) for deposit in deposits], indent=2)
            click.echo(as_json if output == "json" else status_text(deposits))
