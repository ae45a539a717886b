#!/usr/bin/env python3
"""A namespace over HTTP: GET with ranges (RFC 9110, 14), for players, downloaders and curl -r.

    python serve.py URI [PORT]

Back-pressure: a client that doesn't read holds `ahead` chunks, and no more is read from the drive
for it. A client that goes away cancels its reads.
"""

from __future__ import annotations

import asyncio
import re
import sys

from aiohttp import web

import nvme_async
from nvme_async import AsyncNamespace

CHUNK = 256 << 10
AHEAD = 4
NAMESPACE: web.AppKey[AsyncNamespace] = web.AppKey("namespace")


def wanted(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, bytes) of one range; None for all. ValueError if nothing of it is there. Several
    ranges, and other units, count as none: a server may ignore them.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:  # the last bytes
        nbytes = min(int(last), size)
        begin = size - nbytes
    else:
        begin = int(first)
        nbytes = (min(int(last), size - 1) if last else size - 1) - begin + 1
    if begin >= size or nbytes <= 0:
        raise ValueError(header)
    return begin, nbytes


async def get(request: web.Request) -> web.StreamResponse:
    namespace = request.app[NAMESPACE]
    size = namespace.nbytes
    try:
        part = wanted(request.headers.get("Range"), size)
    except ValueError:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"}) from None
    begin, nbytes = part or (0, size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(nbytes), "Content-Type": "application/octet-stream"}
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{begin + nbytes - 1}/{size}"
    response = web.StreamResponse(status=200 if part is None else 206, headers=headers)
    await response.prepare(request)
    if request.method != "HEAD":
        async with namespace.stream(begin, nbytes, chunk=CHUNK, ahead=AHEAD) as chunks:
            async for chunk in chunks:
                await response.write(chunk)  # waits while the client doesn't read
    await response.write_eof()
    return response


def application(namespace: AsyncNamespace) -> web.Application:
    app = web.Application()
    app[NAMESPACE] = namespace
    app.router.add_get("/", get)  # and HEAD
    return app


async def main(uri: str, port: int) -> None:
    async with nvme_async.open(uri) as controller:
        runner = web.AppRunner(application(controller.namespaces[1]), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"serving on http://127.0.0.1:{port}/", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8080))
