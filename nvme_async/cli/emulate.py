"""nvme-async emulate: an emulated controller for other processes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import click

from nvme_async.emulator import EmulatedController, EmulatorConfig
from nvme_async.emulator.config import BLOCK_SIZES, MEDIA, MODERATIONS
from nvme_async.emulator.control import MAX_LINE, ControlServer
from nvme_async.emulator.parsing import parse_size
from nvme_async.emulator.tcp import TcpConfig, parse_endpoint
from nvme_async.runtime.signals import end_requested
from nvme_async.runtime.sockets import ListeningSocket


async def _serve(
    controller: EmulatedController, path: str | None, control: str | None, tcp: list[tuple[str, int]], nvme: TcpConfig
) -> None:
    """Runs until SIGINT or SIGTERM."""
    async with contextlib.AsyncExitStack() as stack:
        ended = stack.enter_context(end_requested())
        if control is not None:
            listening = ListeningSocket(control)
            stack.callback(listening.unlink)
            server = await asyncio.start_unix_server(
                ControlServer(controller).serve,
                sock=listening.socket,
                limit=MAX_LINE,
            )
            stack.callback(server.close)
        where = []
        if path is not None:
            controller.listen(path)
            where.append(path)
        if tcp:
            for host, port in controller.serve_tcp(*tcp, config=nvme):
                where.append(f"tcp:[{host}]:{port}/{nvme.nqn}" if ":" in host else f"tcp:{host}:{port}/{nvme.nqn}")
        click.echo(f"nvme-async emulate: ready on {', '.join(where)}")
        await ended.wait()


@click.command()
@click.option("--socket", "path", metavar="PATH", help="Socket that clients connect to: vfio-user:PATH.")
@click.option(
    "--tcp", metavar="ADDR[:PORT]", multiple=True, help="Serve NVMe/TCP at this address [port: 4420]. May be repeated."
)
@click.option("--nqn", metavar="NQN", help=f"Name of the NVMe/TCP subsystem. [default: {TcpConfig().nqn}]")
@click.option("--in-capsule", metavar="SIZE", help="Longest in-capsule data of NVMe/TCP. [default: 8KiB]")
@click.option(
    "--tls-key",
    metavar="NVMeTLSkey-1:…",
    help="Serve NVMe/TCP over TLS alone, with this pre-shared key or a file with it; needs Python 3.13.",
)
@click.option("--referral", metavar="ADDR:PORT", multiple=True, help="Another discovery service to list in the log.")
@click.option("--size", metavar="SIZE", help="Size of each namespace: 4096, 512MiB, 1g. [default: 1GiB, or the file's]")
@click.option(
    "--block",
    type=click.Choice([str(size) for size in BLOCK_SIZES]),
    help="Logical block size. [default: 4096]",
)
@click.option("--namespaces", type=int, help="Number of namespaces, all alike. [default: 1]")
@click.option("--medium", type=click.Choice(MEDIA), help="What stores the blocks. [default: ram]")
@click.option("--path", "file", metavar="FILE", help="The file of --medium file; implies it.")
@click.option("--queues", type=int, help="I/O queue pairs. [default: 64]")
@click.option("--depth", type=int, help="Entries of the longest queue. [default: 1024]")
@click.option("--vectors", type=int, help="MSI-X vectors. [default: one for each queue pair and the admin queue]")
@click.option("--mdts", metavar="SIZE", help="The longest transfer. [default: 128KiB]")
@click.option("--dbbuf/--no-dbbuf", default=True, help="Offer Doorbell Buffer Config.", show_default=True)
@click.option(
    "--moderation", type=click.Choice(MODERATIONS), help="Adaptive: no interrupts while the host polls. [default: none]"
)
@click.option("--aggregation-threshold", type=int, help="Completions per coalesced interrupt. [default: 1]")
@click.option(
    "--aggregation-time",
    type=int,
    metavar="US",
    help="Longest delay of an interrupt, a multiple of 100 us. [default: 0]",
)
@click.option("--serial", help="Serial number.")
@click.option("--model", help="Model number.")
@click.option(
    "-o",
    "--option",
    "more",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any option of an emulated: URI, such as formats=512/4096+8 or format_time=5. May be repeated.",
)
@click.option("--control", metavar="PATH", help="Socket for faults and counters at run time; JSON lines.")
def emulate(
    path: str | None,
    file: str | None,
    control: str | None,
    more: tuple[str, ...],
    tcp: tuple[str, ...],
    nqn: str | None,
    in_capsule: str | None,
    tls_key: str | None,
    referral: tuple[str, ...],
    **options: Any,
) -> None:
    """Serve an emulated NVMe controller over vfio-user (--socket), NVMe/TCP (--tcp), or both.

    Over NVMe/TCP any number of hosts may connect at once: this package with tcp:ADDR:PORT/NQN,
    Linux (nvme connect -t tcp), SPDK (trtype:TCP); a discovery service answers on the same ports.
    Over vfio-user clients are served one at a time: this package with vfio-user:PATH, QEMU's
    vfio-user-pci (its guest's memory must be shared: memory-backend-memfd,share=on), SPDK
    (trtype:VFIOUSER traddr:FOLDER, the socket being FOLDER/cntrl). Prints one line when it is ready
    and serves until SIGINT or SIGTERM.
    """
    if file is not None and options["medium"] is None:
        options["medium"] = "file"
    if path is None and not tcp:
        raise click.UsageError("give --socket, --tcp, or both: no client could connect otherwise")
    endpoints = [parse_endpoint(one) for one in tcp]
    words: dict[str, Any] = {"referrals": tuple(parse_endpoint(one, 8009) for one in referral)}
    if nqn is not None:
        words["nqn"] = nqn
    if in_capsule is not None:
        words["in_capsule"] = parse_size(in_capsule, "in-capsule")
    if tls_key is not None:
        words["tls_key"] = tls_key
    nvme = TcpConfig(**words)
    given = EmulatorConfig.split(",".join(more))
    config = EmulatorConfig.from_options({**options, "path": file, "reactor": "own", **given})
    with EmulatedController(config) as controller:
        asyncio.run(_serve(controller, path, control, endpoints, nvme))
