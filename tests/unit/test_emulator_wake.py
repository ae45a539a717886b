"""Other threads wake the emulator's reactor, even if they are delayed half-way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone  # measures times

# The eventfd is written first, then the flag for a polling reactor is set. The thread is delayed in
# between for longer than the reactor spins.
SLOW_WRITE = """
#include <sys/syscall.h>
#include <unistd.h>
ssize_t write(int fd, const void *data, size_t nbytes)
{
    ssize_t result = syscall(SYS_write, fd, data, nbytes);
    if (nbytes == 8)
        usleep(3000);
    return result;
}
"""

PROGRAM = """
import asyncio, time, nvme_async

async def main():
    async with nvme_async.open("emulated:size=1MiB") as controller:
        for _ in range(5):
            time.sleep(0.02)  # asleep
            controller.device.emulator.faults.release()
    print("woken")

asyncio.run(main())
"""


IDLING = """
import asyncio, json, time, nvme_async

async def main():
    async with nvme_async.open("emulated:size=1MiB,medium=null") as controller:
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            await controller.namespaces[1].read(0)
            await asyncio.sleep(0.001)
        print(json.dumps(controller.device.emulator.reactor_stats()))

asyncio.run(main())
"""

# Simulates another process that uses up its time slice, or none.
YIELDS = {"dear": "usleep(4000)", "cheap": "(void)0"}

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def run_with(folder: Path, source: str, program: str) -> str:
    """What `program` prints with the functions of `source` in place of the C library's."""
    (folder / "instead.c").write_text(source)
    library = folder / "instead.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "instead.c")], check=True)
    preload = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == ""
    return result.stdout


@needs_compiler
def test_a_request_whose_sender_is_held_up_is_not_lost(tmp_path: Path) -> None:
    assert run_with(tmp_path, SLOW_WRITE, PROGRAM) == "woken\n"


@needs_compiler
@pytest.mark.parametrize("cost", YIELDS)
def test_the_reactor_yields_only_while_yielding_is_cheap(tmp_path: Path, cost: str) -> None:
    source = f"#include <unistd.h>\nint sched_yield(void) {{ {YIELDS[cost]}; return 0; }}\n"
    stats = json.loads(run_with(tmp_path, source, IDLING))
    if cost == "dear":
        assert 1 <= stats["dear_yields"] <= stats["yields"] < 20
    else:
        assert stats["yields"] - stats["dear_yields"] > 50
