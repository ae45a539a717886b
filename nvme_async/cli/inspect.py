"""nvme-async inspect and top: what a running manager does, or what a device is like."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from nvme_async.device import schemes
from nvme_async.errors import ConfigurationError
from nvme_async.manager import Manager
from nvme_async.manager.control import ControlClient

_STYLES = {"ready": "green", "servicing": "yellow", "loading": "yellow"}
_target = click.argument("target")


def _is_uri(target: str) -> bool:
    return target.partition(":")[0].lower() in schemes() and ":" in target


async def _one_shot(uris: Sequence[str], registers: bool) -> dict[str, Any]:
    """The state of a manager of our own that has just loaded the devices."""
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


def _plain(value: Any) -> str:
    """Text from devices and errors, without what a terminal or rich would take for commands."""
    text = "".join(char if char.isprintable() else "?" for char in str(value).split("\0", 1)[0].strip())
    return text.replace("[", "\\[")


def _queues(queues: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = "qid depth mode SQ_tail CQ_head phase out waiting done per_reap doorbells per_command intr spins"
    for name in names.replace("_", "\xa0").split(" "):
        table.add_column(name, justify="left" if name == "mode" else "right")
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
        table.add_row(*map(str, values))
    return table


def _pending(queues: list[dict[str, Any]]) -> Iterator[str]:
    for queue in queues:
        for command in queue.get("pending", ()):
            nsid = f" namespace {command['nsid']} lba {command['lba']}" if command["nsid"] else ""
            orphan = ", nobody waits" if command["orphan"] else ""
            yield f"queue {queue['qid']} cid {command['cid']}: {command['name']}{nsid}, "
        f"{command['nbytes']} bytes, {command['age']} s{orphan}"


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


def _controller(tree: Tree, controller: dict[str, Any]) -> None:
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
    queues = [queue for queue in (controller["admin_queue"], *controller["io_queues"]) if queue]
    tree.add(Group(Text("queues"), _queues(queues)))
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


def as_tree(state: dict[str, Any]) -> Tree:
    """What inspect() says, for people."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state["since"]))
    tree = Tree(f"manager, pid {state['pid']}, since {since}")
    for worker in state["workers"]:
        cpus = f", CPUs {','.join(map(str, worker['cpus']))}" if worker["cpus"] else ""
        tree.add(
            f"{worker['name']}: {worker['event_loop']}, {worker['devices']} devices, "
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
            _controller(branch, device["controller"])
        registers = device.get("registers")
        if isinstance(registers, dict):
            branch.add("registers " + " ".join(f"{name} {value}" for name, value in registers.items()))
        elif registers:
            branch.add(f"registers: [red]{_plain(registers)}[/]")
    return tree


@click.command("inspect")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "-o",
    "--output-format",
    "output",
    type=click.Choice(["tree", "json", "prometheus"]),
    default="tree",
    show_default=True,
)
@click.option("--registers", is_flag=True, help="Read the controllers' registers too.")
def inspect(targets: tuple[str, ...], output: str, registers: bool) -> None:
    """Show everything about a running manager, or about devices.

    TARGET is the manager's control socket (Manager(control=PATH)), or the URI of a device, or
    several, which are opened for the purpose.
    """
    target = targets[0]
    if len(targets) > 1 and not all(map(_is_uri, targets)):
        raise click.UsageError("several targets have to be devices; a manager is looked at alone")
    if _is_uri(target):
        if output == "prometheus":
            raise click.UsageError("-o prometheus is for a running manager")
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
        Console(soft_wrap=True).print(as_tree(state))


# -- a live view -----------------------------------------------------------------------------------


def _sum(controller: dict[str, Any] | None, value: Callable[[dict[str, Any]], float]) -> float:
    return sum(value(queue) for queue in controller["io_queues"] if not queue.get("closed")) if controller else 0.0


_RATES: dict[str, Callable[[dict[str, Any]], float]] = {
    "IOPS": lambda queue: queue["cq"]["reaped"],
    "intr/s": lambda queue: queue["interrupts"],
    "doorbells/s": lambda queue: queue["sq"]["doorbells"] + queue["cq"]["doorbells"],
    "errors/s": lambda queue: queue["errors"],
}


def as_table(before: dict[str, Any], now: dict[str, Any], seconds: float) -> Table:
    """Rates between two looks."""
    cpu = sum(worker["cpu_seconds"] for worker in now["workers"]) - sum(
        worker["cpu_seconds"] for worker in before["workers"]
    )
    title = (
        f"manager, pid {now['pid']}: {len(now['devices'])} devices, {len(now['workers'])} workers, "
        f"{100 * max(cpu, 0) / seconds:.1f} % CPU"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column("device", no_wrap=True, overflow="ellipsis", max_width=48)
    table.add_column("state")
    for name in (*_RATES, "out", "waiting", "per reap", "resets", "memory"):
        table.add_column(name, justify="right")
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
        table.add_row(
            _plain(uri),
            _state(device["state"]),
            *(f"{rate:,.0f}" for rate in rates),
            f"{_sum(controller, lambda queue: queue['outstanding']):.0f}",
            f"{_sum(controller, lambda queue: queue['waiting']) + device['waiting_calls']:.0f}",
            f"{done / reaps:.1f}" if reaps else "-",
            str(controller["resets"]) if controller else "-",
            _size(used),
        )
    return table


@click.command("top")
@_target
@click.option(
    "-d",
    "--interval",
    type=click.FloatRange(0.05, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two views.",
)
@click.option("-c", "--count", type=click.IntRange(1), help="End after so many views.  [default: go on until Ctrl-C]")
def top(target: str, interval: float, count: int | None) -> None:
    """Watch a running manager's devices. TARGET is its control socket."""
    if _is_uri(target):
        raise ConfigurationError(f"{target} is a device; top watches a running manager, by its control socket")
    console = Console()
    with ControlClient(target) as client:
        before, at = _call(client, "inspect"), time.monotonic()
        with Live(console=console, auto_refresh=False, transient=False) as live:
            shown = 0
            while count is None or shown < count:
                time.sleep(interval)
                now, then = _call(client, "inspect"), time.monotonic()
                table = as_table(before, now, then - at)
                if console.is_terminal:
                    live.update(table, refresh=True)
                else:
                    console.print(table, soft_wrap=True)
                before, at = now, then
                shown += 1
