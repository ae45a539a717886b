"""nvme-async discover: the available NVMe/TCP subsystems, with nvme-cli's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
import uvloop

import nvme_async
from nvme_async.cli.output import output_option
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


@click.command()
@service_options
@click.option("--referrals/--no-referrals", default=True, help="Query referred services too. [default: yes]")
@output_option(help="json has nvme-cli's keys.")
def discover(
    uri: str | None,
    transport: str,
    traddr: str | None,
    trsvcid: str | None,
    referrals: bool,
    output: str,
    **options: Any,
) -> None:
    """Show the log of a discovery service. URI is tcp:ADDR[:PORT].

    Each subsystem's line `uri` is a DEVICE for the other commands.
    """
    service = service_uri(uri, transport, traddr, trsvcid)
    entries = uvloop.run(nvme_async.discover(service, referrals=referrals, **options))
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
