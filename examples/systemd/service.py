"""A service that counts its own starts in block 0, and takes over the controller that it finds:
see nvme-async.service.

    python service.py DEVICE [seconds]

Under systemd with FileDescriptorStoreMax= set, the running controller is taken over after each
restart; otherwise (or with OPENHCL_NVME_KEEP_ALIVE=disabled) it is brought up each time.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

import nvme_async
from nvme_async.keepalive.systemd import notify


async def serve(device: str, seconds: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    controller = await nvme_async.open(device)
    namespace = controller.namespaces[1]
    starts = int.from_bytes((await namespace.read(0))[:8], "little") + 1
    await namespace.write(0, starts.to_bytes(8, "little").ljust(namespace.block_size, b"\0"))
    print(f"start {starts}: {controller.decision}", flush=True)
    print(f"{len(controller.adopted)} commands of the predecessor", flush=True)
    notify("READY=1")
    try:
        async with asyncio.timeout(seconds or None):
            await stop.wait()
    except TimeoutError:
        pass
    # Not closed on SIGTERM: this may be a restart, and the store holds the controller. After a stop
    # systemd releases it by itself.
    if not stop.is_set():
        await controller.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0))
