"""nvme-async discover: the available NVMe/TCP subsystems, with nvme-cli's names."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import click
import uvloop

import nvme_async
from nvme_async.cli.output import output_option
from nvme_async.driver.tcp.discovery import watch_discovery
from nvme_async.driver.tcp.host import FOLDER
from nvme_async.runtime.signals import end_requested
from nvme_async.spec.discovery import FAMILIES, SUBSYSTEMS, TRANSPORTS, DiscoveryEntry

_SECURITY = {0: "none", 1: "tls", 2: "tls13"}
_TREQ = {0: "not specified", 1: "required", 2: "not required"}


def _fields(entry: DiscoveryEntry) -> dict[str, Any]:
    treq = _TREQ.get(entry.treq & 3, "reserved")
    if entry.treq & 4:
        treq += ", sq flow control disable supported"
    return {
        "trtype": TRANSPORTS.get(entry.trtype, f"{entry.trtype}"),
        "adrfam": FAMILIES.get(entry.adrfam, f"{entry.adrfam}"),
        "subtype": SUBSYSTEMS.get(entry.subtype, f"{entry.subtype}"),
        "treq": treq,
        "portid": entry.portid,
        "trsvcid": entry.trsvcid,
        "subnqn": entry.subnqn,
        "traddr": entry.traddr,
        "eflags": entry.eflags,
        "sectype": _SECURITY.get(entry.sectype, f"{entry.sectype}"),
    }


_SERVICE = (
    click.argument("uri", required=False),
    click.option(
        "-t", "--transport", type=click.Choice(["tcp"]), default="tcp", help="Transport; tcp is the only one supported."
    ),
    click.option("-a", "--traddr", metavar="ADDR", help="Address of the discovery service, instead of URI."),
    click.option("-s", "--trsvcid", metavar="PORT", help="Port of the discovery service. [default: 8009]"),
    click.option("-q", "--hostnqn", default="", help="[default: /etc/nvme/hostnqn, else this machine's own]"),
    click.option("-I", "--hostid", default="", help="[default: /etc/nvme/hostid, else this machine's own]"),
    click.option("-S", "--dhchap-secret", default="", metavar="DHHC-1:…", help="DH-HMAC-CHAP secret of this host."),
    click.option("-C", "--dhchap-ctrl-secret", default="", metavar="DHHC-1:…", help="Secret of the service."),
    click.option("-w", "--host-traddr", default="", metavar="ADDR", help="Address of this host to connect from."),
    click.option("-f", "--host-iface", default="", metavar="NAME", help="Network interface to connect from."),
    click.option("-g", "--hdr-digest", is_flag=True, help="Protect PDU headers with CRC32C."),
    click.option("-G", "--data-digest", is_flag=True, help="Protect PDU data with CRC32C."),
    click.option("--tls", is_flag=True, help="TLS 1.3 with the pre-shared key of --tls-key; needs Python 3.13."),
    click.option(
        "--tls-key",
        "--tls_key",
        default="",
        metavar="NVMeTLSkey-1:…",
        help="That key, or a file with it (gen-tls-key).",
    ),
    click.option(
        "--tls-identity",
        type=click.IntRange(0, 1),
        default=1,
        show_default=True,
        help="Version of the key's identity; SPDK's target knows only 0.",
    ),
)


def service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A discovery service, by URI or by nvme-cli's words, and this host."""
    for option in reversed(_SERVICE):
        command = option(command)
    return command


def service_uri(uri: str | None, transport: str, traddr: str | None, trsvcid: str | None) -> str:
    """The service that the options name. click.UsageError."""
    if (uri is None) == (traddr is None):
        raise click.UsageError("give a URI (tcp:ADDR:PORT), or --traddr and --trsvcid")
    if uri is not None:
        return uri
    assert traddr is not None
    host = f"[{traddr}]" if ":" in traddr else traddr
    return f"{transport}:{host}" + (f":{trsvcid}" if trsvcid else "")


def services_of(
    uri: str | None, transport: str, traddr: str | None, trsvcid: str | None, options: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """(URI, options) of the service that the command line names, or of those in
    /etc/nvme/discovery.conf, as nvme-cli has it: a line for each, with the words of this command.
    Its options come before the command line's. click.UsageError.
    """
    if uri is not None or traddr is not None:
        return [(service_uri(uri, transport, traddr, trsvcid), options)]
    path = FOLDER / "discovery.conf"
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else (), start=1):
        if not (words := shlex.split(line, comments=True)):
            continue
        try:
            named = _line.make_context(f"{path}:{number}", words).params
            place = service_uri(*(named.pop(name) for name in ("uri", "transport", "traddr", "trsvcid")))
        except click.UsageError as error:
            raise click.UsageError(f"{path}, line {number}: {error.format_message()}") from None
        found.append((place, {**options, **{name: one for name, one in named.items() if one not in (None, "", False)}}))
    if not found:
        raise click.UsageError(f"give a URI (tcp:ADDR:PORT), or --traddr and --trsvcid; {path} names none either")
    return found


@service_options
@click.option("-k", "--keep-alive-tmo", type=float)
@click.pass_context
def _words(ctx: click.Context, /, **words: Any) -> None:
    """One line of discovery.conf."""


_line = click.command()(_words)


@click.command()
@service_options
@click.option(
    "-p", "--persistent", is_flag=True, help="Stay connected, and show the log again whenever it changes, until Ctrl-C."
)
@click.option("-k", "--keep-alive-tmo", type=float, metavar="SECONDS", help="With --persistent.  [default: 15]")
@click.option("--referrals/--no-referrals", default=True, help="Query referred services too. [default: yes]")
@output_option(help="json has nvme-cli's keys.")
def discover(
    uri: str | None,
    transport: str,
    traddr: str | None,
    trsvcid: str | None,
    persistent: bool,
    referrals: bool,
    output: str,
    **options: Any,
) -> None:
    """Show the log of a discovery service. URI is tcp:ADDR[:PORT]; without one the services in
    /etc/nvme/discovery.conf are queried.

    Each subsystem's line `uri` is a DEVICE for the other commands.
    """
    options = {name: value for name, value in options.items() if value is not None}
    services = services_of(uri, transport, traddr, trsvcid, options)
    if persistent:
        if len(services) > 1:
            raise click.UsageError("--persistent takes one discovery service")
        uvloop.run(_watch(*services[0], output))
        return
    entries: list[DiscoveryEntry] = []
    for service, of_it in services:
        found = uvloop.run(nvme_async.discover(service, referrals=referrals, **of_it))
        entries += [entry for entry in found if entry not in entries]
    _show(entries, output)


async def _watch(service: str, options: dict[str, Any], output: str) -> None:
    with end_requested() as ended:
        stop = asyncio.ensure_future(ended.wait())
        logs = watch_discovery(service, **options)
        try:
            while True:
                log = asyncio.ensure_future(anext(logs))
                await asyncio.wait([stop, log], return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    log.cancel()
                    await asyncio.gather(log, return_exceptions=True)
                    return
                _show(log.result(), output)
        finally:
            stop.cancel()
            await cast(AsyncGenerator[Any, None], logs).aclose()


def _show(entries: list[DiscoveryEntry], output: str) -> None:
    if output == "json":
        click.echo(json.dumps({"records": [_fields(entry) for entry in entries]}, indent=2))
        return
    click.echo(f"Discovery Log Number of Records {len(entries)}")
    for number, entry in enumerate(entries):
        click.echo(f"=====Discovery Log Entry {number}======")
        for name, value in _fields(entry).items():
            click.echo(f"{name + ':':<9}{value}")
        if entry.uri is not None:
            click.echo(f"{'uri:':<9}{entry.uri}")
