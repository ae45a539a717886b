"""Reads and writes that know which contents they may read, while the controller is managed beside
them.

Each block is written with its own content: who wrote it, where, in which version and with which
block size. A `Load` runs on one event loop and works on every namespace that the controller has at
the moment. What is about to happen is announced by `begin()`, and that it is over by `end()`, so
that a read outside of it has exactly one valid result, and an error that was not announced is a
fault.

As a program it is a worker process of a shared controller:

    python verified_load.py PATH SEED

It prints "ready", then answers each line on its standard input: "begin JSON", "end", "cut" (its
connection to the owner is lost), "count" and "stop"; the answer to the last two is JSON of
`Load.report()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import nvme_async
from nvme_async.errors import CommandError, NvmeError
from nvme_async.sharing.worker import SharedTransport

BLOCKS = 24
"""Blocks of each namespace that belong to one load; its seed says which."""
TASKS = 3


def content(seed: int, nsid: int, lba: int, version: int, size: int) -> bytes:
    return struct.pack("<HHIQQQ", seed, nsid, size, lba, version, 0x5EED) * (size // 32)


def name_of(error: Exception) -> str:
    """The class of an error; with its status if there is no class for that."""
    if type(error) is CommandError:
        return f"{error.sct}/{error.sc:02x}"
    return type(error).__name__


class Block:
    """What may be read: some of the contents that were written. None is zeroes."""

    def __init__(self) -> None:
        self.may_be: set[bytes | None] = {None}
        self.touched = 0  # epoch of the last write that had an effect, or may have had one


class Load:
    """Attributes:
    verified: blocks that were written and read back.
    errors: how many of each kind; of those that were announced.
    wrong: everything that must not be.
    """

    def __init__(self, controller: nvme_async.Controller, seed: int) -> None:
        self._controller = controller
        self._seed = seed
        self._blocks: dict[tuple[int, str], dict[int, Block]] = {}
        # An announcement begins an epoch, its end another: odd ones are between.
        self._announced: list[tuple[frozenset[str], frozenset[int]]] = [(frozenset(), frozenset())]
        self._stopped = False
        self._version = 0
        self.verified = 0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []

    @property
    def _epoch(self) -> int:
        return len(self._announced) - 1

    def begin(self, errors: Iterable[str] = (), erases: Iterable[int] = ()) -> None:
        """Requests may fail with these errors from now on, and blocks of these namespaces become
        zeroes.
        """
        assert self._epoch % 2 == 0
        self._announced.append((frozenset(errors), frozenset(erases)))

    def end(self) -> None:
        """It is over: erased blocks are zeroes, unless they were written meanwhile."""
        _, erased = self._announced[-1]
        for (nsid, _), blocks in self._blocks.items():
            for block in blocks.values() if nsid in erased else ():
                block.may_be = {None} | (block.may_be if block.touched == self._epoch else set())
        self._announced.append((frozenset(), frozenset()))

    def report(self) -> dict[str, Any]:
        sizes = {str(nsid): one.block_size for nsid, one in list(self._controller.namespaces.items())}
        return {
            "verified": self.verified, "errors": dict(self.errors), "wrong": self.wrong[:5], "namespaces": sizes
        }  # fmt: skip

    def stop(self) -> None:
        self._stopped = True

    async def lost(self) -> list[int]:
        """Reads every block once more, when the load has stopped: those whose content is not what
        it must be.
        """
        found = []
        for (nsid, _), blocks in self._blocks.items():
            namespace = self._controller.namespaces[nsid]
            for lba, block in blocks.items():
                got = await namespace.read(lba)
                if got not in block.may_be and not (None in block.may_be and got == bytes(len(got))):
                    found.append(lba)
        return found

    async def run(self) -> None:
        await asyncio.gather(*(self._task(number) for number in range(TASKS)))

    async def _task(self, number: int) -> None:
        turn = 0
        while not self._stopped and not self.wrong:
            for namespace in list(self._controller.namespaces.values()):
                lba = self._seed * BLOCKS + turn % (BLOCKS // TASKS) * TASKS + number
                if self._current(namespace):
                    await self._write(namespace, lba)
                if self._current(namespace):
                    await self._read(namespace, lba)
            turn += 1
            await asyncio.sleep(0)

    def _current(self, namespace: nvme_async.Namespace) -> bool:
        return self._controller.namespaces.get(namespace.nsid) is namespace

    def _block(self, namespace: nvme_async.Namespace, lba: int) -> Block:
        """No other task has its number."""
        return self._blocks.setdefault((namespace.nsid, str(namespace.identity)), {}).setdefault(lba, Block())

    async def _write(self, namespace: nvme_async.Namespace, lba: int) -> None:
        block, began = self._block(namespace, lba), self._epoch
        self._version += 1
        written = content(self._seed, namespace.nsid, lba, self._version, namespace.block_size)
        block.may_be = block.may_be | {written}
        block.touched = began
        try:
            await namespace.write(lba, written)
        except (NvmeError, ValueError) as error:
            self._failed("write", namespace, lba, began, error)
        else:
            block.may_be = {written} | ({None} if self._erased(namespace.nsid, began) else set())
        block.touched = self._epoch

    async def _read(self, namespace: nvme_async.Namespace, lba: int) -> None:
        block, began = self._block(namespace, lba), self._epoch
        size, valid = namespace.block_size, block.may_be
        try:
            got = await namespace.read(lba)
        except (NvmeError, ValueError) as error:
            self._failed("read", namespace, lba, began, error)
            return
        valid = valid | block.may_be | ({None} if self._erased(namespace.nsid, began) else set())
        if got in valid or (got == bytes(size) and None in valid):
            self.verified += 1
            return
        self.wrong.append(
            f"namespace {namespace.nsid}, block {lba} of {size} bytes: read {got[:40].hex()}, expected one of "
            f"{[one and one[:40].hex() for one in valid]}"
        )

    def _erased(self, nsid: int, since: int) -> bool:
        return any(nsid in erased for _, erased in self._announced[since:])

    def _failed(self, what: str, namespace: nvme_async.Namespace, lba: int, since: int, error: Exception) -> None:
        name = name_of(error)
        if any(name in announced for announced, _ in self._announced[since:]):
            self.errors[name] += 1
        else:
            self.wrong.append(f"{what} of namespace {namespace.nsid}, block {lba}: {name}: {error}")


def cut(controller: nvme_async.Controller) -> None:
    """The connection of a worker to the owner is lost; it connects again by itself."""
    assert isinstance(controller.transport, SharedTransport)
    with contextlib.suppress(OSError):  # it is lost already
        controller.transport._channel._sock.shutdown(socket.SHUT_RDWR)


async def main(path: str, seed: int) -> int:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with nvme_async.open(f"shared:{path}", pool_bytes=4 << 20) as controller:
        load = Load(controller, seed)
        running = asyncio.ensure_future(load.run())
        print("ready", flush=True)
        while line := (await reader.readline()).decode().split(maxsplit=1):
            answer: Any = "ok"
            match line[0]:
                case "begin":
                    load.begin(*json.loads(line[1]))
                case "end":
                    load.end()
                case "cut":
                    cut(controller)
                case "count":
                    answer = load.report()
                case "stop":
                    load.stop()
                    await running
                    answer = load.report()
            print(json.dumps(answer), flush=True)
            if line[0] == "stop":
                break
        running.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]))))
