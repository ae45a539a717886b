"""nvme-async inspect and top: the state of a running manager, or of a device."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from nvme_async.cli.columns import Column, elided, table, terminal_width
from nvme_async.cli.keys import keys
from nvme_async.cli.output import output_option
from nvme_async.device import schemes
from nvme_async.errors import ConfigurationError
from nvme_async.fio.units import format_number
from nvme_async.manager import Manager
from nvme_async.manager.control import ControlClient

_TREE_INDENT = 12
"""Indentation of the queues' table in the tree, and a column for the terminal's edge."""
_ENDLESS = 4096
_STYLES = {"ready": "green", "servicing": "yellow", "loading": "yellow"}
_target = click.argument("target")


def _is_uri(target: str) -> bool:
    return target.partition(":")[0].lower() in schemes() and ":" in target


async def _one_shot(uris: Sequence[str], registers: bool) -> dict[str, Any]:
    """The state of a temporary manager that has just loaded the devices."""
    async with Manager() as manager:
        tasks = [asyncio.ensure_future(manager.load(uri)) for uri in uris]
        await asyncio.wait(tasks)
        for task in tasks:
            task.result()
        return await manager.inspect_with_registers() if registers else manager.inspect()


def _call(client: ControlClient, operation: str, **arguments: Any) -> Any:
    try:
        return client.call(operation, **arguments)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None


# -- a tree ----------------------------------------------------------------------------------------


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:g} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:g} TiB" if value == int(value) else f"{value:.1f} TiB"


def _state(state: str) -> str:
    style = _STYLES.get(state, "red")
    return f"[{style}]{state}[/]"


def _printable(value: Any) -> str:
    """Text from devices and errors, without terminal control characters."""
    return "".join(char if char.isprintable() else "?" for char in str(value).split("\0", 1)[0].strip())


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _plain(value: Any) -> str:
    """The same without rich markup."""
    return _printable(value).replace("[", "\\[")


_QUEUE_COLUMNS = (
    Column("qid"),
    Column("depth", 4),
    Column("mode", 5, right=False),
    Column("SQ tail", 6),
    Column("CQ head", 7),
    Column("phase", 12),
    Column("out"),
    Column("waiting", 2),
    Column("done"),
    Column("per reap", 8),
    Column("doorbells", 10),
    Column("per command", 11),
    Column("intr", 1),
    Column("spins", 9),
)


def _queues(queues: list[dict[str, Any]], width: int | None) -> list[str]:
    rows = []
    for queue in queues:
        if queue.get("closed"):
            continue
        sq, cq = queue["sq"], queue["cq"]
        values = (
            queue["qid"],
            queue["depth"],
            queue["mode"],
            sq["tail"],
            cq["head"],
            cq["phase"],
            queue["outstanding"],
            queue["waiting"],
            cq["reaped"],
            queue["completions_per_reap"],
            sq["doorbells"] + cq["doorbells"],
            queue["doorbells_per_command"],
            queue["interrupts"],
            queue["spins"],
        )
        rows.append([str(value) for value in values])
    return table(_QUEUE_COLUMNS, rows, width)


_LEASE_COLUMNS = (
    Column("pid"),
    Column("command", right=False),
    Column("queues", 3, right=False),
    Column("in flight", 1),
    Column("done", 2),
    Column("memory", 4),
    Column("age", 5),
    Column("state", right=False),
)


def _lease(lease: dict[str, Any]) -> list[str]:
    return [
        str(lease["pid"]),
        _printable(lease["command"]),
        ",".join(map(str, lease["queues"])),
        str(lease["in_flight"]),
        str(lease["commands"]),
        _size(lease["pool_bytes"]),
        f"{lease['age']:.0f} s",
        _printable(lease["state"]) + ("" if lease["connected"] else ", not connected"),
    ]


def _pending(queues: list[dict[str, Any]]) -> Iterator[str]:
    for queue in queues:
        for command in queue.get("pending", ()):
            nsid = f" namespace {command['nsid']} lba {command['lba']}" if command["nsid"] else ""
            orphan = ", no waiter" if command["orphan"] else ""
            what = f"{command['name']}{nsid}, {command['nbytes']} bytes, {command['age']} s{orphan}"
            yield f"queue {queue['qid']} cid {command['cid']}: {what}"


def _memory(tree: Tree, memory: dict[str, Any]) -> None:
    for pool in memory["pools"]:
        where = f"IOVA {pool['iova']:#x}, {pool['backing']}"
        branch = tree.add(
            f"pool {pool['name']}: {_size(pool['used_bytes'])} used, {_size(pool['free_bytes'])} free ({where})"
        )
        for slot in pool["slots"]:
            branch.add(
                f"[dim]{slot['offset']:#x}[/] {_size(slot['nbytes'])} {_plain(slot['owner'])} tag "
                f"{slot['tag']}, {slot['state']}"
            )
    for registration in memory["registered"]:
        how = "zero copy" if registration["zero_copy"] else "bounced"
        tree.add(f"registered: {_size(registration['nbytes'])} at {registration['address']:#x}, {how}")


def _controller(tree: Tree, controller: dict[str, Any], width: int | None) -> None:
    identity = (
        f"{_plain(controller['model'])} serial {_plain(controller['serial'])} firmware {_plain(controller['firmware'])}"
    )
    tree.add(f"{identity}, NVMe {controller['version']}")
    tree.add(
        f"resets {controller['resets']}, timeouts {controller['timeouts']}, aborts "
        f"{controller['aborts']}, events {controller['events']}"
    )
    for namespace in controller["namespaces"]:
        gone = f" [red]{_plain(namespace['gone'])}[/]" if namespace["gone"] else ""
        size = f"{_size(namespace['nbytes'])}, {namespace['blocks']} blocks of {namespace['block_size']}"
        tree.add(f"namespace {namespace['nsid']}: {size}{gone}")
    for path in controller.get("paths", ()):
        trouble = f" [red]{_plain(path['trouble'])}[/]" if path["trouble"] else ""
        groups = ", ".join(f"group {group} {state}" for group, state in path["ana"].items())
        tree.add(
            f"path {_plain(path['uri'])} {_state(path['state'])}{', ' if groups else ''}{groups}, commands "
            f"{path['commands']}, failovers {path['failovers']}, resets {path['resets']}{trouble}"
        )
    queues = [queue for queue in (controller["admin_queue"], *controller["io_queues"]) if queue]
    lines = _queues(queues, None if width is None else width - _TREE_INDENT)
    tree.add(Text("\n".join(["queues", *lines]), no_wrap=True))
    if controller.get("leases"):
        lines = table(_LEASE_COLUMNS, [_lease(lease) for lease in controller["leases"]], width)
        tree.add(Text("\n".join(["leases", *lines]), no_wrap=True))
    pending = list(_pending(queues))
    if pending:
        branch = tree.add("pending commands")
        for line in pending:
            branch.add(line)
    if controller["errors"]:
        branch = tree.add("errors by status")
        for status, count in controller["errors"].items():
            branch.add(f"{status}: {count}")
    if controller["memory"]:
        _memory(tree.add("memory"), controller["memory"])


def _keepalive(state: dict[str, Any]) -> str:
    decision = state["decision"]
    line = f"keepalive {'on' if state['on'] else 'off'}"
    if decision is None:
        return line
    if decision["enabled"] != state["on"]:
        line += f", {'on' if decision['enabled'] else 'off'} from the next servicing on"
    return f"{line}: {_plain(decision['why'])}; {_plain(decision['settings'])}"


def as_tree(state: dict[str, Any], width: int | None = None) -> Tree:
    """The result of inspect() for people. width: of the terminal; None: all columns."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state["since"]))
    tree = Tree(f"manager, pid {state['pid']}, since {since}")
    for worker in state["workers"]:
        cpus = f", CPUs {','.join(map(str, worker['cpus']))}" if worker["cpus"] else ""
        tree.add(
            f"{worker['name']}: {worker['event_loop']}, {_count(worker['devices'], 'device')}, "
            f"{worker['cpu_seconds']:.3f} s CPU{cpus}"
        )
    for uri, device in state["devices"].items():
        branch = tree.add(f"[bold]{_plain(uri)}[/] {_state(device['state'])} on {device['worker']}")
        if device["failure"]:
            branch.add(f"[red]{_plain(device['failure'])}[/]")
        running = device["mailbox"]["running"]
        if running:
            waiting = len(device["mailbox"]["waiting"])
            branch.add(f"{running['operation']} for {running['seconds']:g} s, {waiting} more wait")
        branch.add(_keepalive(device["keepalive"]))
        branch.add(
            f"servicings {device['servicings']}, repairs {device['repairs']}, "
            f"calls waiting {device['waiting_calls']}, made again {device['retried_calls']}"
        )
        if device["controller"]:
            _controller(branch, device["controller"], width)
        registers = device.get("registers")
        if isinstance(registers, dict):
            branch.add("registers " + " ".join(f"{name} {value}" for name, value in registers.items()))
        elif registers:
            branch.add(f"registers: [red]{_plain(registers)}[/]")
    return tree


def show_tree(state: dict[str, Any]) -> None:
    """On stdout: as wide as the terminal, in a pipe without a limit."""
    width = terminal_width()
    if width is not None:
        Console().print(as_tree(state, width))
        return
    console = Console(width=_ENDLESS, force_terminal=False)
    with console.capture() as capture:
        console.print(as_tree(state))
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


@click.command("inspect")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@output_option("prometheus", help="normal is for people, json and prometheus for programs.")
@click.option("--registers", is_flag=True, help="Read the controllers' registers too.")
def inspect(targets: tuple[str, ...], output: str, registers: bool) -> None:
    """Show everything about a running manager, or about devices.

    TARGET is the manager's control socket (Manager(control=PATH)), or the URIs of one or several
    devices, which are opened temporarily.
    """
    target = targets[0]
    if len(targets) > 1 and not all(map(_is_uri, targets)):
        raise click.UsageError("several targets must be devices; a manager must be the only target")
    if _is_uri(target):
        if output == "prometheus":
            raise click.UsageError("-o prometheus needs a running manager")
        state = asyncio.run(_one_shot(targets, registers))
    else:
        with ControlClient(target) as client:
            if output == "prometheus":
                click.echo(_call(client, "metrics"), nl=False)
                return
            state = _call(client, "inspect", registers=registers)
    if output == "json":
        click.echo(json.dumps(state, indent=2))
    else:
        show_tree(state)


# -- a live view -----------------------------------------------------------------------------------


def _sum(controller: dict[str, Any] | None, value: Callable[[dict[str, Any]], float]) -> float:
    return sum(value(queue) for queue in controller["io_queues"] if not queue.get("closed")) if controller else 0.0


_RATES: dict[str, Callable[[dict[str, Any]], float]] = {
    "IOPS": lambda queue: queue["cq"]["reaped"],
    "intr/s": lambda queue: queue["interrupts"],
    "doorbells/s": lambda queue: queue["sq"]["doorbells"] + queue["cq"]["doorbells"],
    "errors/s": lambda queue: queue["errors"],
}


_TOP_COLUMNS = (
    Column("device", right=False, elastic=True, least=28),
    Column("state", right=False),
    *(Column(name, rank) for name, rank in zip(_RATES, (0, 3, 8, 2), strict=True)),
    Column("out", 1),
    Column("waiting", 5),
    Column("per reap", 7),
    Column("resets", 4),
    Column("memory", 6),
)
_HEADINGS = 2  # lines above the devices


def as_lines(
    before: dict[str, Any], now: dict[str, Any], seconds: float, width: int | None = None, height: int | None = None
) -> list[str]:
    """Rates between two samples, busiest device first if not all fit into `height` lines."""
    cpu = sum(worker["cpu_seconds"] for worker in now["workers"]) - sum(
        worker["cpu_seconds"] for worker in before["workers"]
    )
    title = (
        f"manager, pid {now['pid']}: {_count(len(now['devices']), 'device')}, "
        f"{_count(len(now['workers']), 'worker')}, "
        f"{100 * max(cpu, 0) / seconds:.1f} % CPU"
    )
    rows: list[tuple[float, list[str]]] = []
    for uri, device in now["devices"].items():
        controller = device["controller"]
        earlier = before["devices"].get(uri, {}).get("controller")
        # A driver that was replaced counts from zero.
        rates = [max(0.0, _sum(controller, rate) - _sum(earlier, rate)) / seconds for rate in _RATES.values()]
        reaps = _sum(controller, lambda queue: queue["reaps"])
        done = _sum(controller, _RATES["IOPS"])
        used = (
            sum(pool["used_bytes"] for pool in controller["memory"]["pools"])
            if controller and controller["memory"]
            else 0
        )
        waiting = _sum(controller, lambda queue: queue["waiting"]) + device["waiting_calls"]
        row = [
            _printable(uri),
            device["state"],
            *(format_number(rate) if width else f"{rate:.0f}" for rate in rates),
            f"{_sum(controller, lambda queue: queue['outstanding']):.0f}",
            f"{waiting:.0f}",
            f"{done / reaps:.1f}" if reaps else "-",
            str(controller["resets"]) if controller else "-",
            _size(used),
        ]
        rows.append((rates[0], row))
        rows += [(rates[0], row) for row in _path_rows(controller, earlier, seconds, bool(width))]
        rows += [(rates[0], row) for row in _lease_rows(controller, earlier, seconds, bool(width))]
    room = None if height is None else max(1, height - _HEADINGS - 1)
    more = []
    if room is not None and len(rows) > room:
        rows.sort(key=lambda pair: -pair[0])
        more = [f"and {len(rows) - room + 1} more"]
        rows = rows[: room - 1]
    return [elided(title, width) if width else title, *table(_TOP_COLUMNS, [row for _, row in rows], width), *more]


def _path_rows(
    controller: dict[str, Any] | None, earlier: dict[str, Any] | None, seconds: float, short: bool
) -> list[list[str]]:
    """A line below its device for each of several paths; the rate is of calls."""
    before = {path["uri"]: path["commands"] for path in (earlier or {}).get("paths", ())}
    rows = []
    for path in (controller or {}).get("paths", ()):
        rate = max(0, path["commands"] - before.get(path["uri"], path["commands"])) / seconds
        endpoint = path["uri"].partition(":")[2].partition("/")[0]
        cells = [f"  path {_printable(endpoint)}", _printable(path["state"])]
        cells += [format_number(rate) if short else f"{rate:.0f}", *["-"] * (len(_RATES) + 2)]
        rows.append([*cells, str(path["resets"]), "-"])
    return rows


def _lease_rows(
    controller: dict[str, Any] | None, earlier: dict[str, Any] | None, seconds: float, short: bool
) -> list[list[str]]:
    """A line below its device for each worker process."""
    before = {lease["lease"]: lease["commands"] for lease in (earlier or {}).get("leases", ())}
    rows = []
    for lease in (controller or {}).get("leases", ()):
        rate = max(0, lease["commands"] - before.get(lease["lease"], lease["commands"])) / seconds
        rows.append(
            [
                f"  pid {lease['pid']} {_printable(lease['command'])}",
                _printable(lease["state"]),
                format_number(rate) if short else f"{rate:.0f}",
                *["-"] * (len(_RATES) - 1),
                str(lease["in_flight"]),
                *["-"] * 3,
                _size(lease["pool_bytes"]),
            ]
        )
    return rows


@click.command("top")
@_target
@click.option(
    "-d",
    "--interval",
    type=click.FloatRange(0.05, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two refreshes.",
)
@click.option("-c", "--count", type=click.IntRange(1), help="Number of refreshes.  [default: until q is pressed]")
def top(target: str, interval: float, count: int | None) -> None:
    """Watch a running manager's devices. TARGET is its control socket. q or Ctrl-C ends it."""
    if _is_uri(target):
        raise ConfigurationError(f"{target} is a device; top watches a running manager, by its control socket")
    with ControlClient(target) as client, keys() as key, _screen() as show:
        before, at = _call(client, "inspect"), time.monotonic()
        shown = 0
        while count is None or shown < count:
            until = time.monotonic() + interval
            while (left := until - time.monotonic()) > 0:
                if key(left) in ("q", "Q"):
                    return
            now, then = _call(client, "inspect"), time.monotonic()
            show(before, now, then - at)
            before, at = now, then
            shown += 1


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[dict[str, Any], dict[str, Any], float], None]]:
    """Shows one view: in place of the previous one on a terminal, below it in a pipe."""
    console = Console()
    if not console.is_terminal:
        yield lambda before, now, seconds: click.echo("\n".join(as_lines(before, now, seconds)))
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:

        def show(before: dict[str, Any], now: dict[str, Any], seconds: float) -> None:
            lines = as_lines(before, now, seconds, console.width, console.height)
            text = Text("\n".join(lines), no_wrap=True, overflow="crop")
            for state, style in {**_STYLES, "failed": "red"}.items():
                text.highlight_words([f" {state} "], style)
            text.highlight_regex(r"\A.*\n.*", "bold")
            live.update(text, refresh=True)

        yield show
