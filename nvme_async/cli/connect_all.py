"""nvme-async connect-all: every NVMe/TCP subsystem of a discovery service, opened and shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import attrs
import click

from nvme_async.cli.columns import Column, table, terminal_width
from nvme_async.cli.discover import service_options, services_of
from nvme_async.cli.output import output_option
from nvme_async.driver.options import Options
from nvme_async.driver.tcp.discovery import watch_discovery
from nvme_async.errors import NvmeError
from nvme_async.manager import ManagedDevice, Manager
from nvme_async.runtime.signals import end_requested

_COLUMNS = (
    Column("device", right=False),
    Column("model", 3, right=False),
    Column("serial", 2, right=False),
    Column("namespaces", 1),
    Column("paths", right=False),
)


def _record(device: ManagedDevice) -> dict[str, Any]:
    controller = device.inspect()["controller"]
    paths = [{name: path[name] for name in ("uri", "state", "ana")} for path in controller.get("paths", ())]
    return {
        "device": device.uri,
        "model": controller["model"].strip(),
        "serial": controller["serial"].strip(),
        "namespaces": [
            {name: namespace[name] for name in ("nsid", "nbytes", "block_size")}
            for namespace in controller["namespaces"]
        ],
        "paths": paths or [{"uri": device.uri, "state": controller["state"], "ana": {}}],
    }


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _row(record: dict[str, Any]) -> list[str]:
    ready = sum(path["state"] == "ready" for path in record["paths"])
    return [
        _printable(record["device"]),
        _printable(record["model"]),
        _printable(record["serial"]),
        str(len(record["namespaces"])),
        f"{ready} of {len(record['paths'])} ready",
    ]


async def _follow(manager: Manager, service: str, options: dict[str, Any]) -> None:
    """Loads what a service lists later. Its loss is survived."""
    known = set(manager.devices)
    pause = options.get("reconnect_delay", Options().reconnect_delay)
    names = {field.name for field in attrs.fields(Options)}
    asked = {name: value for name, value in options.items() if name in names}
    while True:
        try:
            async for _ in watch_discovery(service, **asked):
                await manager.connect_all(service, **options)
                for uri in set(manager.devices) - known:
                    known.add(uri)
                    click.echo(f"connected: {uri}", err=True)
        except NvmeError as error:
            click.echo(f"{service}: {error}", err=True)
        await asyncio.sleep(pause)


async def _connect(
    services: list[tuple[str, dict[str, Any]]], output: str, control: str | None, persistent: bool
) -> None:
    with contextlib.ExitStack() as signals:
        async with Manager(control=control) as manager:
            records = []
            for service, options in services:
                records += [_record(device) for device in await manager.connect_all(service, **options)]
            if output == "json":
                click.echo(json.dumps({"subsystems": records}, indent=2))
            else:
                click.echo("\n".join(table(_COLUMNS, [_row(record) for record in records], terminal_width())))
            if control is None and not persistent:
                return
            ended = signals.enter_context(end_requested())
            click.echo(f"connected; nvme-async top {control} watches them" if control else "connected", err=True)
            following = [
                asyncio.ensure_future(_follow(manager, service, options)) for service, options in services if persistent
            ]
            await ended.wait()
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)


@click.command("connect-all")
@service_options
@click.option("-k", "--keep-alive-tmo", type=float, metavar="SECONDS", help="Keep Alive Timeout.  [default: 15]")
@click.option(
    "-c", "--reconnect-delay", type=float, metavar="SECONDS", help="Longest pause between attempts.  [default: 2]"
)
@click.option(
    "-l",
    "--ctrl-loss-tmo",
    type=float,
    metavar="SECONDS",
    help="Wait for a lost subsystem; -1: without limit.  [default: 600]",
)
@click.option("-i", "--nr-io-queues", "io_queues", type=int, metavar="COUNT", help="I/O queues of each controller.")
@click.option("-Q", "--queue-size", "queue_entries", type=int, metavar="COUNT", help="Entries of an I/O queue.")
@click.option(
    "--iopolicy", type=click.Choice(["round-robin", "queue-depth"]), help="Choice of a path.  [default: round-robin]"
)
@click.option(
    "-p", "--persistent", is_flag=True, help="Stay connected until Ctrl-C, and connect what the service lists later."
)
@click.option("--control", metavar="SOCKET", help="Stay connected until Ctrl-C, for nvme-async inspect and top.")
@output_option()
def connect_all(
    uri: str | None,
    transport: str,
    traddr: str | None,
    trsvcid: str | None,
    output: str,
    control: str | None,
    persistent: bool,
    **options: Any,
) -> None:
    """Open every subsystem that a discovery service knows. URI is tcp:ADDR[:PORT]; without one
    the services in /etc/nvme/discovery.conf are queried.

    Each line's DEVICE is one for the other commands and for nvme_async.open(): all addresses of a
    subsystem are paths to it. This process is the host, so the connections end with it.
    """
    given = {name: value for name, value in options.items() if value not in (None, "", False)}
    asyncio.run(_connect(services_of(uri, transport, traddr, trsvcid, given), output, control, persistent))
