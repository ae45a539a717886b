"""The scheme file: (see address.py)."""

from __future__ import annotations

from nvme_async.driver.kernel.address import parse_address
from nvme_async.driver.kernel.transport import open_transport

__all__ = ["location", "open_transport", "parse"]


def parse(rest: str) -> str:
    """The canonical form of what follows "file:"."""
    return str(parse_address("file", rest)).partition(":")[2]


def location(rest: str) -> tuple[object, ...]:
    """Of the file that the path leads to."""
    return parse_address("file", rest).location()
