"""Faults and counters of an emulated controller in another process: JSON lines over a Unix socket.

    → {"op": "add", "args": {"opcode": 2, "queue": "io", "fail": 641, "count": 1}}
    ← {"ok": true, "result": 1}
    → {"op": "counters"}
    ← {"ok": true, "result": {"enables": 1, …}}
    ← {"ok": false, "error": "…"}

The operations are the methods of nvme_async.emulator.faults.Faults, those of a rule ("hits",
"wait", "last_command", "remove", with "rule": its number), and "stats", "reactor_stats" and
"drop_client" of the controller. Bytes are written in hexadecimal, byte offsets as strings, a delay
without end as "forever".
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import attrs

from nvme_async.emulator.controller import EmulatedController
from nvme_async.emulator.faults import Rule
from nvme_async.errors import ConfigurationError
from nvme_async.runtime.json_lines import JsonLinesClient

MAX_LINE = 1 << 20
MAX_ANSWER = 256 << 20
_DELAYS = ("delay", "delay_post", "ready", "disabled")
_OFFSETS = ("match", "sqe", "cqe")
_HEXADECIMAL = ("payload", "nguid", "eui64", "uuid")


def _decode(args: dict[str, Any]) -> dict[str, Any]:
    """JSON arguments to Python's."""
    decoded = dict(args)
    for key in _DELAYS:
        if decoded.get(key) == "forever":
            decoded[key] = math.inf
    for key in _OFFSETS:
        if decoded.get(key) is not None:
            decoded[key] = {int(offset): bytes.fromhex(data) for offset, data in decoded[key].items()}
    for key in _HEXADECIMAL:
        if decoded.get(key) is not None:
            decoded[key] = bytes.fromhex(decoded[key])
    return decoded


def _encode(value: Any) -> Any:
    """Python results to JSON's types."""
    if attrs.has(type(value)):
        return {field.name: _encode(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "forever"
    return value


class ControlServer:
    """Answers control clients for one controller, in the running event loop; blocking operations
    run in a thread.
    """

    def __init__(self, controller: EmulatedController) -> None:
        self._controller = controller
        self._rules: dict[int, Rule] = {}
        faults = controller.faults
        self._operations: dict[str, Callable[..., Any]] = {
            name: getattr(faults, name)
            for name in (
                "add_namespace",
                "ana_state",
                "change_identity",
                "counters",
                "doorbells",
                "enable_delay",
                "fatal",
                "interrupt",
                "mqes",
                "outstanding",
                "power_loss",
                "release",
                "remove_device",
                "remove_namespace",
                "resize_namespace",
                "sanitize_fails",
                "switch",
                "temperature",
                "trace",
                "zone_state",
            )
        }
        self._operations |= {
            "add": self._add,
            "clear": self._clear,
            "csts": lambda: faults.csts,
            "drop_client": controller.drop_client,
            "hits": lambda rule: self._rule(rule).hits,
            "last_command": lambda rule: self._rule(rule).last_command,
            "reactor_stats": controller.reactor_stats,
            "remove": self._remove,
            "stats": controller.stats,
            "wait": lambda rule, hits=1, timeout=5.0: self._rule(rule).wait(hits, timeout),
        }

    def _add(self, **args: Any) -> int:
        rule = self._controller.faults.add(**args)
        self._rules[rule.id] = rule
        return rule.id

    def _rule(self, rule: int) -> Rule:
        if rule not in self._rules:
            raise ConfigurationError(f"unknown fault rule {rule}")
        return self._rules[rule]

    def _remove(self, rule: int) -> None:
        self._rule(rule).remove()
        del self._rules[rule]

    def _clear(self) -> None:
        self._controller.faults.clear()
        self._rules.clear()

    def execute(self, line: bytes) -> dict[str, Any]:
        """One request to its answer. Blocks for as long as the operation does."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("args", {}), dict):
                raise ConfigurationError('a request must be an object with "op" and optionally "args"')
            operation = self._operations.get(request.get("op", ""))
            if operation is None:
                known = ", ".join(sorted(self._operations))
                raise ConfigurationError(f"unknown operation {request.get('op')!r}; known are {known}")
            return {"ok": True, "result": _encode(operation(**_decode(request.get("args", {}))))}
        except Exception as error:  # the client gets the error, and the server continues
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until it closes. For asyncio.start_unix_server(…, limit=MAX_LINE)."""
        try:
            while line := await reader.readline():
                answer = await asyncio.to_thread(self.execute, line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # ValueError: a line beyond MAX_LINE
            pass
        except asyncio.CancelledError:
            pass  # the loop ends, and asyncio would report a client that is still there as an error
        finally:
            writer.close()


class ControlClient(JsonLinesClient):
    """The other end, blocking: `client.call("add", opcode=2, fail=0x281)`. Not for several threads
    at once.
    """

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        super().__init__(path, timeout=timeout, max_answer=MAX_ANSWER)

    def call(self, op: str, **args: Any) -> Any:
        """The result; RuntimeError with the server's message if it refuses."""
        try:
            return self._exchange({"op": op, "args": args})
        except ConnectionError as error:
            raise ConnectionError("the emulated controller closed its control socket") from error
