"""One web worker: an interpreter, an event loop, and an I/O queue pair of the drive that all
workers share.

Started by service.py: python worker.py --share PATH --listen FD
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import struct

import uvloop
from aiohttp import web

import nvme_async

_LENGTH = struct.Struct("<I")


class Blocks:
    """GET and PUT /blocks/N: what was put there, up to a block's size less 4 bytes, durable when
    it is answered.
    """

    def __init__(self, namespace: nvme_async.Namespace) -> None:
        self._namespace = namespace

    async def get(self, request: web.Request) -> web.Response:
        data = await self._namespace.read(self._lba(request))
        (length,) = _LENGTH.unpack_from(data)
        if not 0 < length <= len(data) - _LENGTH.size:
            raise web.HTTPNotFound
        return web.Response(body=data[_LENGTH.size : _LENGTH.size + length], headers=_WHO)

    async def put(self, request: web.Request) -> web.Response:
        value, size = await request.read(), self._namespace.block_size
        if not 0 < len(value) <= size - _LENGTH.size:
            raise web.HTTPRequestEntityTooLarge(size - _LENGTH.size, len(value))
        block = (_LENGTH.pack(len(value)) + value).ljust(size, b"\0")
        await self._namespace.write(self._lba(request), block, fua=True)
        return web.Response(status=204, headers=_WHO)

    def _lba(self, request: web.Request) -> int:
        lba = int(request.match_info["lba"])
        if lba >= self._namespace.blocks:
            raise web.HTTPNotFound
        return lba


async def who(request: web.Request) -> web.Response:
    return web.Response(text=str(os.getpid()), headers=_WHO)


_WHO = {"X-Worker": str(os.getpid())}


async def main(share: str, listening: socket.socket) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with nvme_async.open(f"shared:{share}") as controller:
        blocks = Blocks(controller.namespaces[1])
        app = web.Application()
        app.router.add_get("/", who)
        app.router.add_get(r"/blocks/{lba:\d+}", blocks.get)
        app.router.add_put(r"/blocks/{lba:\d+}", blocks.put)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        print("ready", flush=True)
        await stop.wait()
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", required=True)
    parser.add_argument("--listen", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(main(arguments.share, socket.socket(fileno=arguments.listen)))
