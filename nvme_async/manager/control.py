"""A running manager's interface for other processes: JSON lines over a Unix socket that only its
user may open.

    → {"op": "inspect", "registers": true}
    ← {"ok": true, "result": {…}}
    → {"op": "reset", "uri": "pci:0000:01:00.0"}
    ← {"ok": false, "error": "QueueShutdown: …"}

Operations: inspect, metrics (Prometheus's text), with "uri": load, unload, reset, service, and with
"setting", for all devices or that of "uri": switch_keepalive. "command" executes one NVMe command
("entry": its 64 bytes in hexadecimal, "admin", "nbytes", "data" in base64) and answers with
"status", "dw0", "dw1", "data". "register" reads a register of "uri" at "offset".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from nvme_async.errors import ConfigurationError, ControllerGone
from nvme_async.manager.device import ManagedDevice
from nvme_async.manager.passthrough import carry_out, describe_registers, read_register
from nvme_async.manager.workers import Worker
from nvme_async.runtime.json_lines import JsonLinesClient
from nvme_async.runtime.sockets import ListeningSocket

MAX_REQUEST = 1 << 20
MAX_ANSWER = 256 << 20
CLIENTS = 64
"""Clients at once; more are disconnected."""


class Controlled(Protocol):
    """The part of a manager that its control socket needs."""

    def inspect(self) -> dict[str, Any]: ...
    async def inspect_with_registers(self) -> dict[str, Any]: ...
    def metrics(self) -> bytes: ...
    def device(self, uri: str) -> ManagedDevice: ...
    async def switch_keepalive(self, setting: str | bool | None, uri: str | None = None) -> None: ...
    async def load(self, uri: str) -> Any: ...
    async def unload(self, uri: str) -> None: ...
    async def reset(self, uri: str) -> None: ...
    async def service(self, uri: str) -> None: ...


class ControlServer:
    """Serves one manager, on the loop of one of its workers. Threads: start() and close() from the
        manager's side.

    ConfigurationError if the path isn't available.
    """

    def __init__(self, manager: Controlled, path: str | Path) -> None:
        self._manager = manager
        self._worker: Worker | None = None
        self._listening = ListeningSocket(path)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    def start(self, worker: Worker) -> None:
        self._worker = worker
        worker.submit(self._start())

    async def _start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listening.socket, limit=MAX_REQUEST)

    async def close(self) -> None:
        """No more clients; from any loop."""
        if self._worker is not None:
            await self._worker.call(self._stop)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._listening.unlink()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) <= CLIENTS:
                while line := await reader.readline():
                    writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                    await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):  # ValueError: a line beyond MAX_REQUEST
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ConfigurationError('a request must be an object with "op"')
            return {"ok": True, "result": await self._execute(request)}
        except Exception as error:  # the client gets the error, and the server continues
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    async def _execute(self, request: dict[str, Any]) -> Any:
        manager = self._manager
        operation = request.get("op")
        if operation == "command":
            if not isinstance(request.get("uri"), str):
                raise ConfigurationError('command needs a device\'s "uri"')
            return await carry_out(manager.device(request["uri"]), request)
        if operation == "register":
            if not isinstance(request.get("uri"), str):
                raise ConfigurationError('register needs a device\'s "uri"')
            return {"value": await read_register(manager.device(request["uri"]), request.get("offset"))}
        if operation == "registers":
            if not isinstance(request.get("uri"), str):
                raise ConfigurationError('registers needs a device\'s "uri"')
            return await describe_registers(manager.device(request["uri"]))
        if operation == "inspect":
            return await manager.inspect_with_registers() if request.get("registers") else manager.inspect()
        if operation == "metrics":
            return manager.metrics().decode()
        if operation == "switch_keepalive":
            setting, of = request.get("setting"), request.get("uri")
            if not isinstance(setting, str | bool | None) or not isinstance(of, str | None):
                raise ConfigurationError(
                    'switch_keepalive takes a "setting" as for OPENHCL_NVME_KEEP_ALIVE,'
                    ' and optionally a device\'s "uri"'
                )
            await manager.switch_keepalive(setting, of)
            return None
        on_device: dict[str, Callable[[str], Awaitable[Any]]] = {
            "load": manager.load,
            "unload": manager.unload,
            "reset": manager.reset,
            "service": manager.service,
        }
        if operation not in on_device:
            raise ConfigurationError(
                f"unknown operation {operation!r}; the operations are inspect, metrics, switch_keepalive, command, "
                f"register, registers, {', '.join(on_device)}"
            )
        uri = request.get("uri")
        if not isinstance(uri, str):
            raise ConfigurationError(f'{operation} needs the device\'s "uri"')
        await on_device[operation](uri)
        return None


class ControlClient(JsonLinesClient):
    """The other end, blocking. For one thread at a time.

    Raises ControllerGone if no manager listens at `path` (any more), RuntimeError with its message
    if it refuses, TimeoutError.
    """

    def __init__(self, path: str | Path, *, timeout: float = 30.0) -> None:
        self._path = path
        try:
            super().__init__(path, timeout=timeout, max_answer=MAX_ANSWER)
        except TimeoutError:
            raise
        except OSError as error:
            raise ControllerGone(f"no manager listens at {path}: {error.strerror or error}") from error

    def call(self, operation: str, **arguments: Any) -> Any:
        try:
            return self._exchange({"op": operation, **arguments})
        except ConnectionError as error:
            raise ControllerGone(f"the manager at {self._path} is gone: {error}") from error
