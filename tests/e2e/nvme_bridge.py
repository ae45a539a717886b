"""nvme-cli on a controller of this process: nvme_shim.c gives the program a socket instead of
/dev/nvme0, and a Bridge answers there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

SHIM = Path(__file__).parent / "nvme_shim.c"
_REQUEST = struct.Struct("<BBHIIIQQIIIIIIIIIIQ")
_DWORDS = ("cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15")

Handler = Callable[[bool, int, int, dict[str, int], bytes, int], Awaitable[tuple[int, int, bytes]]]
"""(admin, opcode, nsid, dwords, data to the controller, bytes wanted) → (status, result, data)."""


def build_shim(folder: Path) -> Path | None:
    """The compiled shim, or None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    return library


def run_nvme(command: list[str], library: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """nvme-cli with a bridge's socket at `path`."""
    environment: Mapping[str, str] = {**os.environ, "LD_PRELOAD": str(library), "NVME_SHIM": str(path)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=60, check=False
    )


class Bridge(threading.Thread):
    """A thread with a loop that serves the shim's requests by `handler`; `opened` surrounds it."""

    def __init__(self, path: Path, handler: Handler | None = None) -> None:
        super().__init__(daemon=True)
        self.path, self.handler = path, handler
        self.ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ending: asyncio.Event

    def run(self) -> None:
        self._loop.run_until_complete(self.main())
        self._loop.close()

    async def main(self) -> None:
        await self.serve()

    async def serve(self) -> None:
        self._ending = asyncio.Event()
        server = await asyncio.start_unix_server(self._client, self.path)
        self.ready.set()
        await self._ending.wait()
        server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self.join(60)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.handler is not None
        try:
            while True:
                (admin,) = struct.unpack("<I", await reader.readexactly(4))
                raw = await reader.readexactly(80)
                opcode, _, _, nsid, cdw2, cdw3, _, _, _, nbytes, *rest = _REQUEST.unpack(raw[: _REQUEST.size])
                dwords = {"cdw2": cdw2, "cdw3": cdw3, **dict(zip(_DWORDS, rest, strict=False))}
                sent = await reader.readexactly(nbytes) if opcode & 1 else b""
                status, result, data = await self.handler(bool(admin), opcode, nsid, dwords, sent, nbytes)
                writer.write(struct.pack("<IQ", status, result))
                if not opcode & 1:
                    writer.write(data[:nbytes].ljust(nbytes, b"\0"))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
