"""nvme-async export: a namespace as a disk for programs that don't know this library."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
import uvloop

import nvme_async
from nvme_async.cli.fabrics import open_device
from nvme_async.errors import ConfigurationError, DeviceError
from nvme_async.export import NbdServer, Ublk, block_device, end_predecessor
from nvme_async.runtime.signals import end_requested

KEEPER_WAIT = 10.0
"""Seconds until a predecessor that is still alive has ended."""


@click.command()
@click.argument("device", required=False)
@click.option("--nbd", metavar="PATH", help="Serve NBD clients at this Unix socket instead of a block device.")
@click.option("--nsid", type=click.IntRange(1), default=1, show_default=True, help="The namespace.")
@click.option(
    "--queues", "--threads", "queues", type=click.IntRange(1, 64), default=1, show_default=True,
    help="Threads, each with a queue pair.",
)  # fmt: skip
@click.option(
    "--depth", type=click.IntRange(1, 1024), default=64, show_default=True,
    help="Requests in flight, of one queue or NBD connection.",
)  # fmt: skip
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option("--name", default="", help="Name of an NBD export; also the default export.")
@click.option(
    "--recover", is_flag=True, help="Serve the namespace's block device whose server has ended; a new one otherwise."
)
@click.option("--leave", is_flag=True, help="When ended by a signal, leave the block device waiting for --recover.")
@click.option(
    "--wait", type=click.FloatRange(0, 86400), default=KEEPER_WAIT, show_default=True, metavar="SECONDS",
    help="For a predecessor that still has the controller.",
)  # fmt: skip
@click.option("--list", "list_", is_flag=True, help="List this machine's ublk devices.")
@click.option("--stop", metavar="DISK", help="Remove this block device, /dev/ublkbN or N. Unmount it first.")
def export(
    device: str | None,
    nbd: str | None,
    nsid: int,
    queues: int,
    depth: int,
    read_only: bool,
    name: str,
    recover: bool,
    leave: bool,
    wait: float,
    list_: bool,
    stop: str | None,
) -> None:
    """Serve a namespace as a block device of this machine, /dev/ublkbN, or over NBD.

    A block device takes Linux 6.0, the module ublk_drv and root. It outlives this process: with
    --keeper (before `export`) the process may be killed, and the next one, with --recover, takes
    over the running controller and the disk; a mounted file system only waits meanwhile.

    With --nbd, qemu, nbd-client, nbdcopy and fio connect with nbd+unix:///?socket=PATH, on any
    machine. Serves until SIGTERM or SIGINT. See docs/export.md.
    """
    if list_:
        _list()
    elif stop is not None:
        _stop(stop)
    elif device is None:
        raise click.UsageError("DEVICE is missing")
    elif nbd is not None and (recover or leave):
        raise click.UsageError(
            "--recover and --leave are of block devices, and NBD clients connect again by themselves"
        )
    elif nbd is not None:
        uvloop.run(_serve_nbd(device, nbd, nsid, name, queues, depth, read_only, wait))
    else:
        uvloop.run(_serve_disk(device, nsid, queues, depth, read_only, recover, leave, wait))


def _list() -> None:
    for info in Ublk.open().devices():
        server = f"served by process {info.pid}" if info.served else "without a server"
        made = "" if info.ours else ", of another program"
        shape = f"{info.queues} queues of {info.depth}"
        click.echo(f"{info.path}: {info.state.name.lower()}, {server}, {shape}{made}")


def _stop(disk: str) -> None:
    found = re.fullmatch(r"(?:/dev/ublkb)?(\d+)", disk)
    if found is None:
        raise click.UsageError(f"{disk!r} is no block device of ublk, which are named /dev/ublkbN")
    ublk, number = Ublk.open(), int(found[1])
    ublk.stop(number)
    try:
        ublk.delete(number)
    except DeviceError:
        if any(info.device == number for info in ublk.devices()):  # not deleted by its server
            raise


@asynccontextmanager
async def _namespace(device: str, nsid: int, wait: float) -> AsyncIterator[nvme_async.Namespace]:
    async with open_device(device, keeper_wait=wait) as controller:
        if nsid not in controller.namespaces:
            raise ConfigurationError(f"{device} has no namespace {nsid}; active: {sorted(controller.namespaces)}")
        await end_predecessor(controller)
        yield controller.namespaces[nsid]


async def _serve_nbd(
    device: str, path: str, nsid: int, name: str, threads: int, depth: int, read_only: bool, wait: float
) -> None:
    with end_requested() as ended:
        if wait > KEEPER_WAIT:
            click.echo(f"{device}: ready to take over", err=True)
        async with (
            _namespace(device, nsid, wait) as namespace,
            NbdServer(namespace, path, name=name, threads=threads, depth=depth, read_only=read_only),
        ):
            click.echo(f"{device}: namespace {nsid}, {namespace.nbytes} bytes, at {path}")
            await ended.wait()


async def _serve_disk(
    device: str, nsid: int, queues: int, depth: int, read_only: bool, recover: bool, leave: bool, wait: float
) -> None:
    with end_requested() as ended:
        ublk = await asyncio.to_thread(Ublk.open)  # before a controller is brought up for nothing
        if recover or wait > KEEPER_WAIT:
            click.echo(f"{device}: ready to take over", err=True)
        async with _namespace(device, nsid, wait) as namespace:
            disk = await block_device(
                namespace, queues=queues, depth=depth, read_only=read_only, recover=recover, ublk=ublk
            )
            click.echo(f"{device}: namespace {nsid}, {namespace.nbytes} bytes, is {disk.path}")
            waiters = [asyncio.ensure_future(ended.wait()), asyncio.ensure_future(disk.wait_closed())]
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            for waiter in waiters:
                waiter.cancel()
            await (disk.leave() if leave and ended.is_set() else disk.close())
            if disk.failure is not None:
                raise DeviceError(f"{disk.path} has ended: {disk.failure}")
