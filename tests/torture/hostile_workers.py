"""A hostile worker: random messages to an owner, and random doorbells, next to a worker that
verifies every block.

    python tests/torture/hostile_workers.py --messages 1000000

Most sessions take a lease and then send requests with valid and invalid values: correct, almost
correct or of another lease, descriptors of every kind, flipped bits, packets that are truncated,
too long, of another version or not sent at all. They read no answers, or disconnect in the middle.
Some ring the doorbells of their own queues, and of queues that don't exist, with random values.
Afterwards the owner must be ready, not have been reset, and hold the same resources as before; the
other worker must have read no wrong byte.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import mmap
import os
import random
import select
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from killed_workers import PATIENCE, Failure, Process, Torture

from nvme_async.sharing.channel import receive
from nvme_async.sharing.protocol import COMMAND_BYTES, MAX_FDS, MAX_MESSAGE, Message, encode
from nvme_async.spec import commands

_REQUESTS = ("lease", "attach", "map", "unmap", "create", "delete", "renew", "admin", "health", "detach", "list")
_TRANSFER = ("join", "take", "reclaim")
_KINDS = (*_REQUESTS, *_TRANSFER, "revoke", "stopped", "held", "answer", "refused", "", "x" * 300)
_NAMES = (
    "lease",
    "token",
    "iova",
    "nbytes",
    "offset",
    "qid",
    "entries",
    "cq",
    "sq",
    "life",
    "queues",
    "pid",
    "hold",
    "attempt",
)
_ODD: tuple[Any, ...] = (
    *(0, 1, -1, 2, 16, 4095, 4096, 1 << 20, 1 << 31, 1 << 32, (1 << 64) - 4096, 1 << 64, 10**30, 1.5, float("inf")),
    *("x", "", "y" * 300, "\0", "\udc80", None, True, False, [], [1], {}, {"a": 1}),
)
_WANTED: dict[str, tuple[str, ...]] = {
    "attach": ("lease", "token"),
    "map": ("lease", "token", "iova", "nbytes", "offset"),
    "unmap": ("lease", "token", "iova", "nbytes"),
    "create": ("qid", "entries", "cq", "sq", "life"),
    "delete": ("qid",),
    "admin": ("nbytes",),
    "lease": ("queues",),
    "stopped": ("life",),
    "held": ("hold",),
    "join": ("lease", "token", "attempt"),
    "take": ("life",),
    "reclaim": ("lease", "token", "attempt"),
}


_BATCH = 5000
"""Messages of one process. Queue ids of a silent worker are not lent again before it exits."""


class Fuzzer:
    """Runs sessions one after another in this process."""

    def __init__(self, path: str, seed: int) -> None:
        self._path = path
        self.random = random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        memory = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, 1 << 20)
        reader, writer = os.pipe()
        self._fds = [memory, memory, memory, reader, writer, os.open("/dev/zero", os.O_RDWR), os.open("/", os.O_RDONLY)]

    def session(self, most: int) -> None:
        """One connection, up to `most` messages."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with sock:
            sock.settimeout(5.0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
            try:
                sock.connect(self._path)
            except OSError:
                self.sent["refused connections"] += 1
                time.sleep(0.01)
                return
            self.sent["connections"] += 1
            grant: dict[str, Any] = {}
            with contextlib.suppress(OSError):
                if self.random.random() < 0.7:
                    grant = self._lease(sock)
                # Most read the answers, because otherwise the owner disconnects them soon.
                reads = self.random.random() < 0.9
                sock.settimeout(0.0)
                for number in range(self.random.randrange(1, most + 1)):
                    self._message(sock, grant)
                    if reads and number % 8 == 7:
                        select.select([sock], [], [], 0.002)
                        self._answers(sock)

    def _lease(self, sock: socket.socket) -> dict[str, Any]:
        sock.send(encode("lease", {"queues": self.random.randrange(1, 4)}, id=9))
        self.sent["messages"] += 1
        while (message := receive(sock)) is not None:
            if message.kind == "refused":
                self.answers[str(message.body.get("code"))] += 1
                return {}
            if message.id == 9:
                if self.random.random() < 0.2:
                    self._doorbells(message)
                message.close()
                self.answers["leases"] += 1
                return message.body
            message.close()
        return {}

    def _doorbells(self, message: Message) -> None:
        """Its own queues, which are not created, and ids beyond all others: the device can't
        protect other workers' queues.
        """
        grant = message.body
        offset, nbytes, first = grant["doorbells"]
        fd = message.fds[grant["descriptors"].index("doorbells")]
        with mmap.mmap(fd, nbytes, offset=offset) as window:
            for _ in range(4):
                qid = self.random.choice([*grant["qids"], self.random.randrange(40, 64)])
                at = first + 8 * qid + self.random.choice((0, 4))
                if at + 4 <= nbytes:
                    window[at : at + 4] = self.random.randrange(1 << 32).to_bytes(4, "little")
                    self.sent["doorbells"] += 1
        if "kick" in grant["descriptors"]:
            os.eventfd_write(message.fds[grant["descriptors"].index("kick")], 1)

    def _value(self, name: str, grant: dict[str, Any]) -> Any:
        chance = self.random
        if not grant or chance.random() < 0.1:
            return chance.choice(_ODD)
        start, length = grant["window"]
        pages = (0, 1, 2, 16, 255, 256, length // 4096 - 1, length // 4096, -1)
        known = {
            "lease": grant["lease"] + chance.choice((0, 0, 0, 0, -1, 1)),
            "token": grant["token"] if chance.random() < 0.9 else "0" * 32,
            "iova": start + 4096 * chance.choice(pages),
            "cq": start + 4096 * chance.choice(pages),
            "sq": start + 4096 * chance.choice(pages),
            "nbytes": 4096 * chance.choice((1, 1, 16, 256, 257, 1 << 20)),
            "offset": 4096 * chance.choice((0, 0, 1, 255, 256)),
            "qid": chance.choice([*grant["qids"], 0, 1, 2, 3]),
            "entries": chance.choice((2, 16, 64, 1024, 1, 4097)),
            "life": grant["life"] + chance.choice((0, 0, 0, 1, -1)),
            "queues": chance.randrange(1, 17),
            "hold": chance.randrange(4),
            "attempt": chance.randrange(4),
        }
        return known.get(name, 1)

    def _message(self, sock: socket.socket, grant: dict[str, Any]) -> None:
        chance = self.random
        kind = chance.choice(_KINDS)
        names = _WANTED.get(kind, ())
        body = {name: self._value(name, grant) for name in names if chance.random() < 0.95}
        if chance.random() < 0.2:
            body[chance.choice(_NAMES)] = self._value(chance.choice(_NAMES), grant)
        if kind == "revoke":
            body["pid"] = chance.choice((0, 1, 1 << 40, -1))
        data = b""
        if kind == "admin":
            data = chance.choice((self._command(), self._command(), chance.randbytes(COMMAND_BYTES), b""))
            data += chance.randbytes(chance.choice((0, 0, 0, 512, 4096)))
        number = chance.choice((0, 1, 2, 0xFFFF_FFFF))
        try:
            packet = encode(kind, body, id=number, data=data)
        except UnicodeEncodeError:
            return
        packet = self._spoil(packet)
        fds = [
            chance.choice(self._fds)
            for _ in range(chance.choice((0, 0, 1, 1, 2)) if chance.random() < 0.995 else MAX_FDS + 1)
        ]
        if kind == "map" and chance.random() < 0.8:
            fds = self._fds[:1]
        try:
            sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
        except BlockingIOError:
            time.sleep(0.0005)
            return
        self.sent["messages"] += 1
        self.sent["descriptors"] += len(fds)

    def _command(self) -> bytes:
        """A request that is valid, or almost."""
        chance = self.random
        command = chance.choice(
            (
                commands.identify(chance.randrange(16)),
                commands.get_log_page(chance.randrange(1, 8), 4096),
                commands.get_features(chance.randrange(1, 16)),
                commands.set_features(chance.randrange(1, 16), 0),
                commands.delete_io_sq(chance.randrange(1, 16)),
                commands.abort(chance.randrange(16), 0),
                commands.format_nvm(1, 0),
            )
        )
        return command.pack()

    def _spoil(self, packet: bytes) -> bytes:
        chance = self.random
        what = chance.random()
        if what < 0.01:
            changed = bytearray(packet)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            return bytes(changed)
        if what < 0.013:
            return packet[: chance.randrange(1, len(packet))]
        if what < 0.014:
            return packet[:4] + chance.randrange(1 << 16).to_bytes(2, "little") + packet[6:]
        if what < 0.015:
            return packet + bytes(chance.choice((1, 4096, MAX_MESSAGE)))
        return packet

    def _answers(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while (message := receive(sock)) is not None:
                self.answers[str(message.body.get("code", message.kind))] += 1
                message.close()


async def _sessions(path: str, seed: int, messages: int, report: int, orders: int) -> None:
    fuzzer = Fuzzer(path, seed)
    while fuzzer.sent["messages"] < messages:
        fuzzer.session(200)
    told = {"event": "sent", "sent": fuzzer.sent, "answered": fuzzer.answers}
    os.write(report, json.dumps(told).encode() + b"\n")


class HostileTorture(Torture):
    """The same owner, and one of its steady workers: the messages must have time too."""

    steady = 1

    def fuzz(self, messages: int, seed: int) -> str:
        with self.owned(), self._steady() as steady:
            self._check()
            sent, answered = Counter[str](), Counter[str]()
            self._batch(seed, 200, sent, answered)  # what grows once
            before = self._settled()
            silent = self._silent()
            shown, number = time.monotonic(), 0
            while sent["messages"] < messages:
                number += 1
                self._batch(seed + number, min(_BATCH, messages), sent, answered)
                self._still(steady)
                if time.monotonic() - shown > 60:
                    shown = time.monotonic()
                    print(f"{sent['messages']} messages", flush=True)
            for sock in silent:
                if sock.recv(1):
                    raise Failure("a peer that said nothing was answered")
                sock.close()
            self._compare(before, self._settled())
        self._verified(steady)
        return f"sent: {dict(sent)}; answered: {dict(answered)}; 0 wrong, 0 left"

    def _batch(self, seed: int, messages: int, sent: Counter[str], answered: Counter[str]) -> None:
        """In a separate process, so that everything it leaves ends with it."""
        process = Process(_sessions, self._path, seed, messages)
        told = process.hear()
        if told is None or process.end():
            raise Failure(f"the sessions of seed {seed} ended early")
        sent.update(told["sent"])
        answered.update(told["answered"])

    def _check(self) -> dict[str, int]:
        found = super()._check()
        del found["invalid_doorbells"]  # there are some
        return found

    def _silent(self) -> list[socket.socket]:
        """Silent peers, which must be disconnected meanwhile."""
        socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(8)]
        for sock in socks:
            sock.settimeout(PATIENCE)
            sock.connect(self._path)
        return socks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        try:
            print(HostileTorture(Path(folder), ()).fuzz(options.messages, seed), flush=True)
        except Failure as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
