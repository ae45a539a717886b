"""A blocking client of a Unix socket that answers each line of JSON with one."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JsonLinesClient:
    """For one thread at a time. OSError if nothing listens at `path`, TimeoutError."""

    def __init__(self, path: str | Path, *, timeout: float, max_answer: int) -> None:
        self._max_answer = max_answer
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def _exchange(self, request: dict[str, Any]) -> Any:
        """The result; RuntimeError with the server's words when it refuses. ConnectionError when
        the server has closed the connection.
        """
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        line = self._file.readline(self._max_answer)
        if not line.endswith(b"\n"):
            raise ConnectionError("the connection was closed")
        answer = json.loads(line)
        if not answer["ok"]:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
