"""kill -9 of a process that drives a stand-alone emulated controller, in the middle of its I/O."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from nvme_async.emulator.control import ControlClient

DRIVER = """
import asyncio, random, sys
import nvme_async

async def work(controller, namespace):
    buffer = controller.alloc(65536)
    while True:
        await namespace.write(random.randrange(namespace.blocks - 16), buffer)
        await namespace.readinto(random.randrange(namespace.blocks - 16), buffer)

async def main():
    async with nvme_async.open(sys.argv[1]) as controller:
        namespace = controller.namespaces[1]
        tasks = [asyncio.ensure_future(work(controller, namespace)) for _ in range(16)]
        await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.gather(*tasks)

asyncio.run(main())
"""


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_maps(pid: int) -> int:
    """Mappings of shared memory: the clients' pools, and the doorbells."""
    return sum("memfd:" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def kill_drivers(tmp_path: Path, times: int) -> None:
    path, control = str(tmp_path / "c.sock"), str(tmp_path / "control.sock")
    command = [sys.executable, "-m", "nvme_async.cli.main", "emulate", "--socket", path, "--size", "64MiB"]
    server = subprocess.Popen([*command, "--control", control], stdout=subprocess.PIPE, text=True)
    try:
        assert "ready" in server.stdout.readline()
        with ControlClient(control) as faults:
            faults.call("stats")  # now our connection is among the descriptors
            before = descriptors(server.pid), memory_maps(server.pid)
            for i in range(times):
                driver = subprocess.Popen(
                    [sys.executable, "-c", DRIVER, f"vfio-user:{path}"], stdout=subprocess.PIPE, text=True
                )
                try:
                    assert driver.stdout.readline() == "ready\n"
                    time.sleep(0.001 * (i * 7 % 20))
                finally:
                    driver.kill()
                    driver.communicate()
            end = time.monotonic() + 30
            while faults.call("stats")["connected"] or (descriptors(server.pid), memory_maps(server.pid)) != before:
                assert time.monotonic() < end, (before, descriptors(server.pid), memory_maps(server.pid))
                time.sleep(0.005)
            counters = faults.call("counters")
            assert counters["enables"] == times
            assert counters["fatals"] == counters["invalid_doorbells"] == 0
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode == 0


def test_the_next_driver_is_served(tmp_path):
    kill_drivers(tmp_path, 5)
