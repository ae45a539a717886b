"""Other threads wake the emulator's reactor, also when they are held up in the middle of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The eventfd is written first, and the flag that tells a polling reactor is set next. Held up in
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_request_whose_sender_is_held_up_is_not_lost(tmp_path: Path) -> None:
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_WRITE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    preload = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.stdout, result.stderr) == ("woken\n", "")
