"""read(), write() and other calls as coroutines: dropped, closed in another thread, and for type
checkers.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from driving import eventually

import nvme_async
from nvme_async.driver.namespace import Namespace
from nvme_async.emulator import FOREVER
from nvme_async.keepalive.controller import Controller

ROOT = Path(__file__).parents[2]

CALLS: dict[str, Callable[[Namespace], Coroutine[Any, Any, Any]]] = {
    "read": lambda ns: ns.read(0),
    "readinto": lambda ns: ns.readinto(0, bytearray(ns.block_size)),
    "write": lambda ns: ns.write(0, bytes(ns.block_size)),
    "compare": lambda ns: ns.compare(0, bytes(ns.block_size)),
    "flush": lambda ns: ns.flush(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_forgotten_await_warns_and_names_the_call(name: str) -> None:
    async with nvme_async.open("emulated:size=16MiB") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)  # from now on this loop has a queue pair
        with pytest.warns(RuntimeWarning, match=rf"coroutine 'Namespace\.{name}' was never awaited"):
            CALLS[name](namespace)


async def test_awaited_closed_or_refused_calls_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with nvme_async.open("emulated:size=16MiB") as controller:
            namespace = controller.namespaces[1]
            for call in CALLS.values():
                await call(namespace)
                call(namespace).close()
                task = asyncio.create_task(call(namespace))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            with pytest.raises(ValueError, match="a buffer of 3 bytes"):
                namespace.write(0, b"odd")
            with pytest.raises(nvme_async.errors.LbaOutOfRange):
                namespace.read(namespace.blocks)
            await namespace.read_many([1, 2, 3])
            gc.collect()


async def test_with_warnings_as_errors_a_forgotten_await_is_unraisable(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    async with nvme_async.open("emulated:size=16MiB") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            namespace.flush()
        await namespace.flush()
    (unraisable,) = seen
    assert isinstance(unraisable.exc_value, RuntimeWarning)
    assert unraisable.object == "Namespace.flush"


def test_type_checkers_accept_the_awaitables_as_coroutines(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\n"
        "from nvme_async.driver.namespace import Namespace\n"
        "async def go(ns: Namespace) -> bytes:\n"
        "    async with asyncio.TaskGroup() as group:\n"
        "        task: asyncio.Task[bytes] = group.create_task(ns.read(0))\n"
        "        group.create_task(ns.write(0, b''))\n"
        "        group.create_task(ns.flush())\n"
        "    return await asyncio.wait_for(ns.read(1), 1) + task.result()\n"
        "async def bad(ns: Namespace) -> None:\n"
        "    await ns.pwrite('text', 0)  # type: ignore[arg-type]\n"
        "    ns.write(0, b'')  # type: ignore[unused-coroutine]\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file="]
    command += ["--cache-dir", str(tmp_path), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def rung(controller: Controller) -> int:
    (queue,) = controller.inspect()["io_queues"]
    return int(queue["sq"]["rung"])


async def test_closing_in_another_thread_is_passed_to_the_owner() -> None:
    """Garbage collection closes coroutines in whichever thread it runs."""
    async with nvme_async.open("emulated:size=16MiB", mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        controller.device.emulator.faults.add(queue="io", opcode=2, delay=FOREVER)  # type: ignore[attr-defined]
        requests = [namespace.read(lba) for lba in range(3)]
        for request in requests:
            request.send(None)
        before = rung(controller)
        thread = threading.Thread(target=requests[2].close)
        thread.start()
        thread.join()
        assert rung(controller) == before
        (queue,) = controller.inspect()["io_queues"]
        assert queue["orphans"] == 0
        await eventually(lambda: controller.inspect()["io_queues"][0]["orphans"] == 1)
        for request in requests[:2]:
            request.close()
        controller.device.emulator.faults.clear()  # type: ignore[attr-defined]
        controller.device.emulator.faults.release()  # type: ignore[attr-defined]


async def test_a_batch_closed_in_another_thread_keeps_its_memory_until_the_owner_knows() -> None:
    async with nvme_async.open("emulated:size=16MiB", mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        controller.device.emulator.faults.add(queue="io", opcode=2, delay=FOREVER)  # type: ignore[attr-defined]
        batch = namespace.read_many([1, 2, 3])
        batch.send(None)
        thread = threading.Thread(target=batch.close)
        thread.start()
        thread.join()
        (queue,) = controller.inspect()["io_queues"]
        assert queue["outstanding"] == 3
        controller.device.emulator.faults.clear()  # type: ignore[attr-defined]
        controller.device.emulator.faults.release()  # type: ignore[attr-defined]
        await eventually(lambda: not controller.inspect()["io_queues"][0]["outstanding"])
        assert await namespace.read(1) == bytes(namespace.block_size)


async def test_sending_from_another_thread_is_refused() -> None:
    async with nvme_async.open("emulated:size=16MiB", mode="interrupt") as controller:
        namespace = controller.namespaces[1]
        await namespace.read(0)
        controller.device.emulator.faults.add(queue="io", opcode=2, delay=0.05)  # type: ignore[attr-defined]
        request = namespace.read(1)
        request.send(None)
        raised: list[BaseException] = []

        def send() -> None:
            try:
                request.send(None)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        assert isinstance(raised[0], RuntimeError)
        assert "another thread" in str(raised[0])
        request.close()
