"""An application that serves a namespace as a disk, and hands it to its successor on command.

python serve.py URI                opens the controller, or takes it over across an exec
python serve.py URI --take SOCKET  takes it over from a process that offers it there

Prints "serving DISK". Commands on standard input: "exec", "handover SOCKET", "close".
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop

import nvme_async
from nvme_async.export import block_device, end_predecessor


async def main(uri: str, *take: str) -> None:
    opening = nvme_async.take_over(take[1]) if take else nvme_async.open(uri, keepalive=True, keeper="none")
    async with opening as controller:
        await end_predecessor(controller)
        disk = await block_device(controller.namespaces[1], queues=2, recover=True)
        print("serving", disk.path, flush=True)
        what, _, where = (await asyncio.to_thread(sys.stdin.readline)).strip().partition(" ")
        if what == "exec":
            await disk.leave()
            await controller.exec([sys.executable, os.path.abspath(__file__), uri])
        elif what == "handover":
            async with controller.handover(where) as offer:
                print("offering", flush=True)
                await offer
            await disk.wait_closed()
        else:
            await disk.close()
    print("closed", flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
