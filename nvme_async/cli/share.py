"""nvme-async share: a process that owns controllers and lends queue pairs to workers, and its
leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

import nvme_async
from nvme_async.cli.output import output_option
from nvme_async.errors import ConfigurationError
from nvme_async.keepalive.systemd import notify
from nvme_async.runtime.signals import handled
from nvme_async.sharing import Policy, Share
from nvme_async.sharing.channel import call_once
from nvme_async.sharing.places import parse, place_of


def leases_text(answer: dict[str, Any]) -> str:
    """One line for each lease."""
    lines = [f"{answer['uri']}: {len(answer['leases'])} leases"]
    for lease in answer["leases"]:
        queues = ", ".join(f"{qid} {what}" for qid, what in lease["queues"].items())
        lines.append(
            f"  pid {lease['pid']} {lease['command']}: queues {queues}; {lease['in_flight']} in flight, "
            f"{lease['commands']} done; {lease['pool_bytes'] >> 20} MiB mapped; "
            f"{lease['age']:.0f} s; {lease['state']}{'' if lease['connected'] else ', not connected'}"
        )
    return "\n".join(lines)


@click.command()
@click.argument("uris", metavar="[DEVICE]...", nargs=-1)
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    required=True,
    help="Socket that workers connect to; for several devices, a directory.",
)
@click.option("--workers", type=int, default=64, show_default=True, help="Most leases at a time.")
@click.option("--queues", type=int, default=1, show_default=True, help="Most I/O queue pairs of one worker.")
@click.option("--pool-mib", type=int, default=256, show_default=True, help="Most memory of one worker, in MiB.")
@click.option(
    "--io-queues", type=int, default=64, show_default=True, help="I/O queue pairs of the owner and all workers."
)
@click.option(
    "--admin",
    type=click.Choice(["none", "read-only", "all"]),
    default="read-only",
    show_default=True,
    help="Admin commands that workers may send.",
)
@click.option("--list", "listing", is_flag=True, help="Show the leases of the owner at PATH, then exit.")
@output_option(help="Format of --list.")
@click.option("--revoke", type=int, metavar="PID", help="Revoke the leases of that process, then exit.")
def share(
    uris: tuple[str, ...],
    path: str,
    workers: int,
    queues: int,
    pool_mib: int,
    io_queues: int,
    admin: str,
    listing: bool,
    output: str,
    revoke: int | None,
) -> None:
    """Own controllers, and lend their queue pairs to worker processes of this user.

    A worker opens shared:PATH instead of the device (of several, shared:PATH?device=DEVICE), and
    does I/O on queue pairs of its own. With --keeper (before `share`) this process may be killed
    and started again while workers go on: SIGTERM leaves controllers and workers to the next owner
    then, SIGINT shuts them down. See docs/sharing.md.
    """
    if listing or revoke is not None:
        path = parse(path)
        if revoke is not None:
            revoked = call_once(path, "revoke", {"pid": revoke}).body["revoked"]
            if not revoked:
                raise click.ClickException(f"process {revoke} has no lease at {path}")
            click.echo(f"{revoked} leases of process {revoke} were revoked")
        if listing:
            answer = call_once(path, "list").body
            click.echo(json.dumps(answer, indent=2) if output == "json" else leases_text(answer))
        return
    if not uris:
        raise click.UsageError("a DEVICE is needed, or --list or --revoke")
    policy = {"workers": workers, "queues": queues, "pool_bytes": pool_mib << 20, "admin": admin}
    Policy.of(policy)
    asyncio.run(_serve(uris, path, policy, io_queues))


async def _serve(uris: tuple[str, ...], path: str, policy: dict[str, Any], io_queues: int) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[signal.Signals] = loop.create_future()

    def end(number: signal.Signals) -> None:
        if not ended.done():
            ended.set_result(number)

    if len(uris) > 1:
        Path(path).mkdir(mode=0o700, exist_ok=True)
    places = {uri: place_of(uri, path, len(uris) > 1) for uri in uris}
    if len(set(places.values())) != len(uris):
        raise ConfigurationError("a device is named twice")
    controllers: list[nvme_async.Controller] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(handled(end))
        for uri, place in places.items():
            controller = await stack.enter_async_context(nvme_async.open(uri, io_queues=io_queues, keeper_wait=10.0))
            controllers.append(controller)
            shared = await controller.share(place, **policy)
            assert isinstance(shared, Share)
            click.echo(f"{uri}: shared at {shared.path}")
        notify("READY=1")
        if await ended is signal.SIGTERM and all(controller.depositor is not None for controller in controllers):
            # This may be a restart. What the keeper has is complete at any time; closing would end
            # the leases.
            click.echo("left to the keeper: workers continue, and the next owner takes over")
            sys.stdout.flush()
            os._exit(0)
