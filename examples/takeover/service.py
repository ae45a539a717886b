#!/usr/bin/env python3
"""A service that is upgraded without a pause: start the new one, and the old one hands its
controller over and exits.

    python service.py URI SOCKET

The first one brings the controller up. Each later one takes the running controller over from the
process that serves at SOCKET: no reset, no lost command. The service counts in block 0, as fast as
it can, and every process continues where the previous one stopped.
"""

from __future__ import annotations

import asyncio
import os
import sys

import nvme_async
from nvme_async.errors import ControllerGone, HandedOver


async def controller_of(uri: str, path: str) -> nvme_async.Controller:
    """Takes the controller over from the process that has it, or else opens it."""
    if os.path.exists(path):
        try:
            return await nvme_async.take_over(path)
        except ControllerGone as nobody:
            print(f"{os.getpid()}: {nobody}", flush=True)
    return await nvme_async.open(uri, keepalive=True)


async def count(namespace: nvme_async.Namespace) -> int:
    """Runs until the controller is handed over. Returns the last number that is certain to be on
    the drive.
    """
    number = int.from_bytes((await namespace.read(0))[:8], "little")
    print(f"{os.getpid()}: goes on from {number}", flush=True)
    try:
        while True:
            await namespace.write(0, (number + 1).to_bytes(8, "little").ljust(namespace.block_size, b"\0"))
            number += 1
    except HandedOver:
        return number  # one more may be in flight: the successor waits for it before it reads


async def main(uri: str, path: str) -> None:
    controller = await controller_of(uri, path)
    try:
        async for command in controller.adopted:  # the predecessor's last write, if it was still in flight
            print(f"{os.getpid()}: adopted {command!r}", flush=True)
        counting = asyncio.create_task(count(next(iter(controller.namespaces.values()))))
        async with controller.handover(path) as offer:
            print(f"{os.getpid()}: offers itself at {path}", flush=True)
            await offer
        print(f"{os.getpid()}: handed over at {await counting}", flush=True)
    finally:
        await controller.close()  # has no effect on a controller that was handed over


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
