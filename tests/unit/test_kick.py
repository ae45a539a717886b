"""The ring that signals a peer's eventfd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import native_build
import pytest

from nvme_async.emulator import EmulatedController

SOURCE = Path(__file__).parents[1] / "native" / "device" / "check_kick.c"

DRIVER = """
import asyncio, os, sys
import nvme_async

async def main():
    async with nvme_async.open(sys.argv[1], pool_bytes=4 << 20) as controller:
        await controller.namespaces[1].read(0)
        rings = 0
        for fd in os.listdir("/proc/self/fd"):
            try:
                rings += os.readlink("/proc/self/fd/" + fd) == "anon_inode:[io_uring]"
            except OSError:
                pass
        print(rings, "[aio]" in open("/proc/self/maps").read())

asyncio.run(main())
"""


@pytest.mark.skipif(native_build.COMPILER is None, reason="there is no C compiler")
def test_threads_share_a_ring_without_a_lock() -> None:
    program = native_build.program([SOURCE], "-O2")
    found = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    if found.stdout == "no io_uring\n":
        pytest.skip("this system has no io_uring")
    assert (found.stdout, found.returncode) == ("0 failed, 8000 counted, 0 left\n", 0)


def test_a_driver_with_a_ring_has_no_asynchronous_io_context(tmp_path: Path) -> None:
    """The kernel takes tens of milliseconds to destroy one when the process is killed, and the
    successor waits for its end.
    """
    controller = EmulatedController("size=1MiB")
    try:
        controller.listen(str(tmp_path / "device"))
        command = [sys.executable, "-c", DRIVER, f"vfio-user:{tmp_path / 'device'}"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout.split()
    finally:
        controller.close()
    if output[0] == "0":
        pytest.skip("this system has no io_uring")
    assert output == ["1", "False"]
