"""The cost of many controllers in one process: attaching, memory, an idle manager, each I/O; and
of calls across loops.

    python benchmarks/scale.py [--controllers 64] [--namespaces 4] [--depth 8] [--depth 32]
    [--seconds 1] [-o json]

Everything runs on emulated controllers of this process, with media that store nothing, so the
figures include the driver, the manager and the emulator's thread. `driver` is the CPU time of the
awaiting thread, which runs only the driver and this loop. Each number of controllers is compared
with one controller at the same depth, and with one that has as many I/Os in flight as all of them
in total.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click
import uvloop

from nvme_async import Manager
from nvme_async.driver.options import MODES
from nvme_async.spec import commands
from nvme_async.spec.opcodes import Cns

# Commands that one queue pair of the emulated controller can have in flight.
MOST_OUT = 1022


def uri(number: int, namespaces: int) -> str:
    return f"emulated:size=1GiB,medium=null,namespaces={namespaces},queues=8,serial=SCALE{number}"


def memory() -> dict[str, int]:
    """KiB of this process's private (anonymous) and shared memory (pools)."""
    with open("/proc/self/smaps_rollup") as file:
        values = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    with open("/proc/self/status") as file:
        shared = next(int(line.split()[1]) for line in file if line.startswith("RssShmem"))
    return {"anonymous": values["Anonymous"], "shared": shared}


def counters(queue_pairs: list[Any]) -> dict[str, int]:
    """What they have had so far. kicks: doorbells for which the controller had to be woken, each of
    them a system call.
    """
    found = {"commands": 0, "interrupts": 0, "kicks": 0}
    for hot in queue_pairs:
        state = hot.inspect()
        found["commands"] += state["sq"]["submitted"]
        found["interrupts"] += state["interrupts"]
        found["kicks"] += state["sq"]["doorbells"] + state["cq"]["doorbells"]
    return found


def used_by_buffers(manager: Manager) -> int:
    """KiB of pool memory for data: bounce pages and the application's."""
    nbytes = 0
    for device in manager.inspect()["devices"].values():
        for pool in device["controller"]["memory"]["pools"]:
            nbytes += sum(
                slot["nbytes"] for slot in pool["slots"] if slot["owner"].startswith(("bounce", "application"))
            )
    return nbytes // 1024


async def hot_ones(manager: Manager, addresses: list[str]) -> list[Any]:
    """This loop's queue pair of each controller, which its first I/O makes."""
    loop, found = asyncio.get_running_loop(), []
    for address in addresses:
        controller = manager.device(address).controller
        assert controller is not None
        await controller.namespaces[1].read(0)
        found.append(controller.queues.hot[loop])
    return found


async def load(devices: list[tuple[Callable[[int], Any], list[Any]]], depth: int, seconds: float) -> dict[str, float]:
    """`depth` readers for each device, given as (its alloc, its namespaces), which read the
    namespaces in turn into 4 KiB that the device can access.
    """
    done = 0
    stop = time.perf_counter() + seconds

    async def reader(alloc: Callable[[int], Any], namespaces: list[Any], first: int) -> None:
        nonlocal done
        at, count = first, len(namespaces)
        with alloc(4096) as buffer:
            while time.perf_counter() < stop:
                for _ in range(16):
                    await namespaces[at % count].readinto(at * 7919 % 262144, buffer)
                    at += 1
                done += 16

    began, cpu, driver = time.perf_counter(), time.process_time(), time.thread_time()
    await asyncio.gather(*(reader(*device, first) for first in range(depth) for device in devices))
    elapsed = time.perf_counter() - began
    return {
        "iops": round(done / elapsed),
        "us_wall": round(elapsed / done * 1e6, 3),
        "us_driver": round((time.thread_time() - driver) / done * 1e6, 3),
        "us_process": round((time.process_time() - cpu) / done * 1e6, 3),
    }


async def curve(
    counts: list[int], namespaces: int, depths: Sequence[int], seconds: float, mode: Any
) -> list[dict[str, Any]]:
    """One row per number of controllers, all attached at the same time, with so many readers per
    controller.
    """
    rows = []
    for count in counts:
        gc.collect()
        before, descriptors = memory(), len(os.listdir("/proc/self/fd"))
        async with Manager(mode=mode) as manager:
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(manager.load(uri(number, namespaces)) for number in range(count)))
            attach = time.perf_counter() - began
            attach_cpu = time.process_time() - cpu
            gc.collect()
            after = memory()
            row: dict[str, Any] = {
                "controllers": count,
                "namespaces": count * namespaces,
                "attach_seconds": round(attach, 3),
                "attach_cpu_seconds": round(attach_cpu, 3),
                "threads": threading.active_count(),
                "descriptors_each": round((len(os.listdir("/proc/self/fd")) - descriptors) / count, 1),
                "kib_each": round(
                    (after["anonymous"] + after["shared"] - before["anonymous"] - before["shared"]) / count
                ),
                "kib_each_beyond_buffers": round(
                    (
                        after["anonymous"]
                        + after["shared"]
                        - before["anonymous"]
                        - before["shared"]
                        - used_by_buffers(manager)
                    )
                    / count
                ),
            }
            handles: list[tuple[Callable[[int], Any], list[Any]]] = []
            for number in range(count):
                of_one = [await manager.namespace(uri(number, namespaces), nsid) for nsid in range(1, namespaces + 1)]
                handles.append((of_one[0].alloc, of_one))
            row["io"] = {}
            queue_pairs = await hot_ones(manager, [uri(number, namespaces) for number in range(count)])
            for depth in depths:
                await load(handles, depth, seconds / 4)
                first = counters(queue_pairs)
                row["io"][depth] = await load(handles, depth, seconds)
                last = counters(queue_pairs)
                for name in ("interrupts", "kicks"):
                    row["io"][depth][name] = round(
                        (last[name] - first[name]) / (last["commands"] - first["commands"]), 3
                    )
            cpu = time.process_time()
            await asyncio.sleep(seconds)
            row["idle_cpu_percent"] = round((time.process_time() - cpu) / seconds * 100, 3)
            rows.append(row)
    return rows


async def concentrated(depths: Sequence[int], seconds: float, mode: Any) -> dict[int, dict[str, float]]:
    """{depth: figures} of one controller."""
    async with Manager(queue_entries=max(depths) + 2, mode=mode) as manager:
        namespace = await manager.namespace(uri(0, 1), 1)
        results = {}
        for depth in depths:
            await load([(namespace.alloc, [namespace])], depth, seconds / 4)
            results[depth] = await load([(namespace.alloc, [namespace])], depth, seconds)
        return results


async def microseconds(operation: Callable[[], Awaitable[Any]], count: int) -> float:
    await operation()
    began = time.perf_counter()
    for _ in range(count):
        await operation()
    return round((time.perf_counter() - began) / count * 1e6, 2)


async def across(seconds: float) -> dict[str, float]:
    """The cost of each kind of call, in microseconds."""
    address = uri(0, 1)
    results: dict[str, float] = {}
    async with Manager(workers=1) as manager:
        namespace = await manager.namespace(address, 1)
        device = manager.device(address)
        controller = device.controller
        assert controller is not None
        buffer = bytearray(4096)
        raw = controller.namespaces[1]

        began = time.perf_counter()
        await raw.readinto(0, buffer)
        results["first I/O of a loop (its queue pair is made)"] = round((time.perf_counter() - began) * 1e6, 2)
        results["I/O, driver's namespace, depth 1"] = await microseconds(lambda: raw.readinto(0, buffer), 3000)
        results["I/O, manager's handle, depth 1"] = await microseconds(lambda: namespace.readinto(0, buffer), 3000)

        async def nothing() -> None:
            pass

        results["a coroutine on the worker's loop, awaited from ours"] = await microseconds(
            lambda: device.worker.call(nothing), 1000
        )
        results["an operation of the mailbox"] = await microseconds(
            lambda: device.mailbox.call("nothing", nothing), 1000
        )
        identify = commands.identify(Cns.CONTROLLER)
        results["an admin command from another loop (Identify)"] = await microseconds(
            lambda: controller.admin(identify), 500
        )

        async def at_home() -> float:
            return await microseconds(lambda: controller.admin(identify), 500)

        results["the same on its own loop"] = await device.worker.call(at_home)

        def plain() -> float:
            manager.run(namespace.readinto(0, buffer))
            began = time.perf_counter()
            for _ in range(1000):
                manager.run(namespace.readinto(0, buffer))
            return round((time.perf_counter() - began) / 1000 * 1e6, 2)

        results["manager.run(I/O) from a plain thread"] = await asyncio.to_thread(plain)
        for name, target in (("driver's namespace", raw), ("manager's handle", namespace)):
            figures = await load([(namespace.alloc, [target])], 32, seconds)
            results[f"I/O, {name}, depth 32, CPU of the caller's thread"] = figures["us_driver"]
    return results


@click.command()
@click.option("--controllers", type=click.IntRange(1, 256), default=64, show_default=True)
@click.option("--namespaces", type=click.IntRange(1, 16), default=4, show_default=True)
@click.option(
    "--depth",
    "depths",
    type=click.IntRange(1, 256),
    default=(2, 8),
    multiple=True,
    show_default=True,
    help="Readers for each controller; several are measured one after the other.",
)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="For each measurement.")
@click.option(
    "--mode", type=click.Choice(MODES), default="adaptive", show_default=True, help="How completions are waited for."
)
@click.option("-o", "--output-format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def main(controllers: int, namespaces: int, depths: tuple[int, ...], seconds: float, mode: str, output: str) -> None:
    """Measure the cost of many controllers in one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard, hard)
    )  # about 50 descriptors for each controller, the emulator's included
    counts = [count for count in (1, 4, 16, 64, 256) if count < controllers] + [controllers]
    totals = sorted({depth * count for depth in depths for count in counts if depth * count <= MOST_OUT})
    ones = uvloop.run(concentrated(totals, seconds, mode))
    rows = uvloop.run(curve(counts, namespaces, depths, seconds, mode))
    calls = uvloop.run(across(seconds / 2))
    if output == "json":
        click.echo(json.dumps({"one": ones, "curve": rows, "microseconds": calls, "open_files_before": soft}, indent=2))
        return
    click.echo("controllers namespaces attach s  KiB each beyond-buffers fds each threads idle %CPU")
    for row in rows:
        click.echo(
            f"{row['controllers']:>11} {row['namespaces']:>10} {row['attach_seconds']:>8.3f} {row['kib_each']:>9} "
            f"{row['kib_each_beyond_buffers']:>14} {row['descriptors_each']:>8} {row['threads']:>7} "
            f"{row['idle_cpu_percent']:>9.3f}"
        )
    click.echo(
        "                                µs CPU per I/O   of one controller's, same depth   of one's with as many out"
    )
    click.echo(
        "controllers depth each     IOPS driver process             driver  process           driver  process"
        "   interrupts kicks per I/O"
    )
    for depth in depths:
        for row in rows:
            io, alone = row["io"][depth], ones[depth]
            line = f"{row['controllers']:>11} {depth:>10} {io['iops']:>8} {io['us_driver']:>6.2f}"
            line += f" {io['us_process']:>7.2f} "
            line += f"{io['us_driver'] / alone['us_driver']:>18.2f} {io['us_process'] / alone['us_process']:>8.2f}"
            one = ones.get(depth * row["controllers"])
            if one is not None:
                line += f" {io['us_driver'] / one['us_driver']:>16.2f} {io['us_process'] / one['us_process']:>8.2f}"
            else:
                line += " " * 26
            click.echo(line + f" {io['interrupts']:>12.3f} {io['kicks']:>5.3f}")
    for what, value in calls.items():
        click.echo(f"{value:>10.2f} µs  {what}")


if __name__ == "__main__":
    main()
