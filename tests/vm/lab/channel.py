"""The guest's requests to the host over its second serial port: one JSON object per line, and
one answer.

    {"trace": "mark"}                              → {"ok": 12345}          position in QEMU's trace
    {"trace": "events", "since": 12345}            → {"ok": [[event, text], …]}
    {"qmp": "device_del", "arguments": {…}}        → {"ok": …}              any QMP command
    {"copy": "plain-1", "offset": 0, "nbytes": 16} → {"ok": "hex"}          a medium, from the host
    {"emulator": "ram-4k", "op": "counters"}       → {"ok": …}              our control socket
    anything that fails                            → {"error": "why"}

So a test inside can prove what the controller saw from a source that the driver under test can't
reach.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRACE_LINE = re.compile(r"^(?:\d+@[\d.]+:)?(pci_nvme_\w+|vtd_\w+) ?(.*)$")

Asked = Callable[[str, str, dict[str, Any]], Any]
"""Answers a request to an emulated controller: its role, the operation, its arguments."""


class Qmp:
    """QEMU's monitor: one command at a time, events skipped."""

    def __init__(self, place: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        try:
            self._socket.connect(str(place))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("r", encoding="utf-8")
        self._file.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """The command's result; raises ValueError with QEMU's message if it refuses."""
        request: dict[str, Any] = {"execute": command, "arguments": arguments or {}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while line := self._file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise ValueError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise ConnectionError("QEMU closed its monitor")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Channel:
    """Serves the guest's requests on a thread until QEMU closes the port."""

    def __init__(
        self,
        port: Path,
        monitor: Path,
        trace: Path,
        media: Path,
        emulator: Asked | None = None,
    ) -> None:
        self._qmp = Qmp(monitor)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(port))
        except OSError:
            self._socket.close()
            self._qmp.close()
            raise
        self._trace, self._media, self._emulator = trace, media, emulator
        self._thread = threading.Thread(target=self._serve, name="guest-channel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; QEMU has ended, or is about to."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # QEMU was faster
        self._thread.join(10)
        self._socket.close()
        self._qmp.close()

    def _serve(self) -> None:
        with self._socket.makefile("rwb", buffering=0) as stream:
            try:
                for line in stream:
                    stream.write(json.dumps(self._answer(line)).encode() + b"\n")
            except OSError:
                return  # the port was closed meanwhile

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if "qmp" in request:
                return {"ok": self._qmp.execute(request["qmp"], request.get("arguments"))}
            if request.get("trace") == "mark":
                return {"ok": self._trace.stat().st_size}
            if request.get("trace") == "events":
                return {"ok": trace_events(self._trace, request["since"])}
            if "copy" in request:
                with (self._media / f"{request['copy']}.raw").open("rb") as medium:
                    medium.seek(request["offset"])
                    return {"ok": medium.read(request["nbytes"]).hex()}
            if "emulator" in request and self._emulator is not None:
                return {"ok": self._emulator(request["emulator"], request["op"], request.get("args", {}))}
            raise ValueError(f"the lab knows no request {sorted(request)}")
        except (ValueError, KeyError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}


def trace_events(trace: Path, since: int = 0) -> list[tuple[str, str]]:
    """The events in QEMU's log after an offset: (event, its text)."""
    with trace.open("rb") as file:
        file.seek(since)
        lines = file.read().decode(errors="replace").splitlines()
    return [match.groups() for match in map(TRACE_LINE.match, lines) if match]  # type: ignore[misc]
