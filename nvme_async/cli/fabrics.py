"""Options on every command that takes a DEVICE: nvme-cli's words for a controller over NVMe/TCP,
and the memory of this host that a controller gets.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import click

import nvme_async
from nvme_async._open import Opening

_HOST = (
    "hostnqn",
    "hostid",
    "dhchap_secret",
    "dhchap_ctrl_secret",
    "hdr_digest",
    "data_digest",
    "tls",
    "tls_key",
    "tls_identity",
    "host_traddr",
    "host_iface",
    "host_memory",
    "cmb_queues",
    "pcie_keep_alive_tmo",
    "apst_latency_us",
)
_GIVEN = f"{__name__}.given"
"""Key in the metadata of the outermost context: options of open() that this command line has
named. The next command of one process (a test, a shell) starts without them.
"""

_ADDRESS = ("transport", "traddr", "trsvcid", "nqn")


def _options() -> list[click.Option]:
    return [
        click.Option(["--transport"], type=click.Choice(["tcp"]), help="With --traddr and --nqn instead of DEVICE."),
        click.Option(["--traddr"], metavar="ADDR", help="Name or IP address of an NVMe/TCP controller."),
        click.Option(["--trsvcid"], metavar="PORT", help="Port of that controller. [default: 4420]"),
        click.Option(["--nqn"], metavar="NQN", help="Name of its subsystem."),
        click.Option(["--hostnqn"], metavar="NQN", help="Name of this host. [default: as in /etc/nvme/hostnqn]"),
        click.Option(["--hostid"], metavar="UUID", help="Identifier of this host. [default: as in /etc/nvme/hostid]"),
        click.Option(["--dhchap-secret"], metavar="DHHC-1:…", help="DH-HMAC-CHAP secret of this host."),
        click.Option(["--dhchap-ctrl-secret"], metavar="DHHC-1:…", help="Secret of the controller."),
        click.Option(["--host-traddr"], metavar="ADDR", help="Address of this host that connections are made from."),
        click.Option(["--host-iface"], metavar="NAME", help="Network interface that connections are made from."),
        click.Option(["--hdr-digest"], is_flag=True, help="Protect PDU headers with CRC32C."),
        click.Option(["--data-digest"], is_flag=True, help="Protect PDU data with CRC32C."),
        click.Option(["--tls"], is_flag=True, help="TLS 1.3 with the pre-shared key of --tls-key; needs Python 3.13."),
        click.Option(
            ["--tls-key", "--tls_key"], metavar="NVMeTLSkey-1:…", help="That key, or a file with it (gen-tls-key)."
        ),
        click.Option(
            ["--tls-identity"],
            type=click.IntRange(0, 1),
            help="Version of the key's identity; SPDK's target knows only 0. [default: 1]",
        ),
        click.Option(
            ["--host-memory"],
            type=click.IntRange(0),
            metavar="BYTES",
            help="Most memory of this host for a controller without its own. [default: its minimum]",
        ),
        click.Option(
            ["--cmb-queues"],
            type=click.Choice(["off", "submission", "all"]),
            help="Which I/O queues are in the controller's memory (CMB), if it allows that. [default: off]",
        ),
        click.Option(
            ["--pcie-keep-alive-tmo"],
            type=click.FloatRange(0, 86400),
            metavar="SECONDS",
            help="Keep Alive Timeout of a PCI function; 0: none. [default: 0]",
        ),
        click.Option(
            ["--apst-latency-us"],
            type=click.IntRange(0, (1 << 32) - 1),
            metavar="US",
            help="Autonomous transitions to power states that are left in so many microseconds; 0: none.",
        ),
    ]


def _device(words: dict[str, Any]) -> str | None:
    """The URI that the words make. click.UsageError names what is missing."""
    transport, traddr, trsvcid, nqn = (words[name] for name in _ADDRESS)
    if traddr is None and nqn is None:
        if transport or trsvcid:
            raise click.UsageError("--transport and --trsvcid need --traddr and --nqn")
        return None
    if traddr is None or nqn is None:
        raise click.UsageError("--traddr and --nqn belong together")
    host = f"[{traddr}]" if ":" in traddr else traddr
    return f"tcp:{host}{f':{trsvcid}' if trsvcid else ''}/{nqn}"


def with_words(command: click.Command) -> click.Command:
    """The command, or a copy of it which takes these words too if it has a DEVICE and none of the
    kind of its own; so do the commands of a group. The command itself stays as it is.
    """
    if members := getattr(command, "commands", {}):
        group = copy.copy(command)
        group.commands = {name: with_words(member) for name, member in members.items()}  # type: ignore[attr-defined]
        command = group
    argument = next((one for one in command.params if isinstance(one, click.Argument) and one.name == "device"), None)
    names = {option for one in command.params for option in one.opts}
    if argument is None or argument.callback is not None or command.callback is None or "--traddr" in names:
        return command
    added = [option for option in _options() if option.opts[0] not in names]
    optional = copy.copy(argument)
    optional.required = False
    made = copy.copy(command)
    made.params = [optional if one is argument else one for one in command.params] + list[click.Parameter](added)
    made.callback = _takes_words(command.callback, argument.required, {str(option.name) for option in added})
    return made


def _takes_words(callback: Callable[..., Any], needed: bool, added: set[str]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def call(**arguments: Any) -> Any:
        words = {word: arguments.pop(word) for word in added}
        click.get_current_context().find_root().meta[_GIVEN] = {
            word: value for word in _HOST if (value := words.get(word)) is not None and value is not False
        }
        device = _device({word: words[word] for word in _ADDRESS})
        if device is not None and arguments["device"] is not None:
            raise click.UsageError("give DEVICE, or --traddr and --nqn, not both")
        arguments["device"] = device or arguments["device"]
        if needed and arguments["device"] is None:
            raise click.UsageError("Missing argument 'DEVICE'.")
        return callback(**arguments)

    return call


def open_device(device: str, **options: Any) -> Opening:
    """nvme_async.open() of a command's DEVICE, with what else the command line says of it."""
    context = click.get_current_context(silent=True)
    given = {} if context is None else context.find_root().meta.get(_GIVEN, {})
    return nvme_async.open(device, **options, **given)
