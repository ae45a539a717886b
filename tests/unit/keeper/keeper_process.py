"""A keeper, and other processes that use it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import nvme_async.keepalive.keeper as keeper_package
from nvme_async.keepalive.keeper import wire
from nvme_async.keepalive.keeper.client import KeeperClient

FOLDER = os.path.dirname(keeper_package.__file__)
URI = "vfio-user:/run/controller.sock"


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it didn't come to pass"
        time.sleep(0.005)


def empty(path: str) -> bool:
    with KeeperClient(path) as client:
        for deposit in client.deposits():
            if deposit.state == "orphaned" or deposit.pid == os.getpid():
                client.drop(deposit.name, force=True)
        return not client.deposits()


def memfd(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return fd


def put(client: KeeperClient, name: str, **contents: bytes) -> None:
    fds = {label: memfd(content) for label, content in contents.items()}
    try:
        client.put(name, fds)
    finally:
        wire.close_all(fds.values())


def contents(fds: dict[str, int]) -> dict[str, bytes]:
    read = {label: os.pread(fd, 100, 0) for label, fd in fds.items()}
    wire.close_all(fds.values())
    return read
