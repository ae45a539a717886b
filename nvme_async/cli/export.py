"""nvme-async export: a namespace as a disk for programs that don't know this library."""

from __future__ import annotations

import asyncio
import signal

import click
import uvloop

import nvme_async
from nvme_async.errors import ConfigurationError
from nvme_async.export import NbdServer, end_predecessor


@click.command()
@click.argument("device")
@click.option("--nbd", "path", metavar="PATH", required=True, help="Serve NBD clients at this Unix socket.")
@click.option("--nsid", type=click.IntRange(1), default=1, show_default=True, help="The namespace.")
@click.option("--name", default="", help="Name of the export; also the default export.")
@click.option(
    "--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads; each has a queue pair."
)
@click.option(
    "--depth", type=click.IntRange(1, 1024), default=64, show_default=True, help="Requests in flight per connection."
)
@click.option("--read-only", is_flag=True, help="Refuse writes.")
def export(device: str, path: str, nsid: int, name: str, threads: int, depth: int, read_only: bool) -> None:
    """Serve a namespace as a disk over NBD, to qemu, nbd-client, nbdcopy or fio.

    Connect with nbd+unix:///?socket=PATH. With --keeper (before `export`) this process may be
    killed and started again: the controller is not reset, and clients connect again. Serves until
    SIGTERM or SIGINT. See docs/export.md.
    """
    uvloop.run(_serve(device, path, nsid, name, threads, depth, read_only))


async def _serve(device: str, path: str, nsid: int, name: str, threads: int, depth: int, read_only: bool) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with nvme_async.open(device, keeper_wait=10.0) as controller:
        if nsid not in controller.namespaces:
            raise ConfigurationError(f"{device} has no namespace {nsid}; active: {sorted(controller.namespaces)}")
        await end_predecessor(controller)
        namespace = controller.namespaces[nsid]
        async with NbdServer(namespace, path, name=name, threads=threads, depth=depth, read_only=read_only):
            click.echo(f"{device}: namespace {nsid}, {namespace.nbytes} bytes, at {path}")
            await ended.wait()
