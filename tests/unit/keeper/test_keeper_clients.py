"""The keeper and clients that do not behave: broken frames, half messages, silence, too much."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper_process import URI, eventually, put

from nvme_async.errors import KeeperError
from nvme_async.keepalive.keeper.client import KeeperClient
from nvme_async.keepalive.keeper.process import listen
from nvme_async.keepalive.keeper.server import Keeper


@contextlib.contextmanager
def raw(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)  # without a timeout: with one it fails where the backlog is full
        sock.settimeout(60)
        yield sock


@pytest.mark.parametrize("data", [b"nonsense", b"[1]", b"\xff\xfe", b"[" * 50_000, b'"x"', b"{" + b" " * 70_000 + b"}"])
def test_a_malformed_message_ends_the_connection(path: str, client: KeeperClient, data: bytes) -> None:
    put(client, URI, pool=b"P")
    with raw(path) as sock:
        sock.send(data)
        assert sock.recv(1000) == b""
    assert len(client.deposits()) == 1


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"op": None},
        {"op": ["put"]},
        {"op": "steal", "name": "x"},
        {"op": "get"},
        {"op": "get", "name": ""},
        {"op": "get", "name": 7},
        {"op": "get", "name": "a\nb"},
        {"op": "get", "name": "x" * 513},
        {"op": "get", "name": "x", "wait": -1},
        {"op": "get", "name": "x", "wait": "long"},
        {"op": "get", "name": "x", "wait": True},
        {"op": "get", "name": "x", "wait": float("nan")},
        {"op": "get", "name": "x", "wait": 1e9},
        {"op": "put", "name": "x"},
        {"op": "put", "name": "x", "fds": ["pool"]},
        {"op": "put", "name": "x", "fds": "pool"},
        {"op": "put", "name": "x", "fds": [1]},
        {"op": "give", "name": "x", "pid": "1"},
        {"op": "give", "name": "x", "pid": 0},
    ],
)
def test_an_invalid_request_is_refused_and_changes_nothing(
    path: str, client: KeeperClient, message: dict[str, object]
) -> None:
    with raw(path) as sock:
        sock.send(json.dumps(message).encode())
        answer = json.loads(sock.recv(10_000))
        assert answer["ok"] is False
        assert answer["code"] == "invalid"
        sock.send(b'{"op": "list"}')
        assert json.loads(sock.recv(10_000)) == {"ok": True, "deposits": [], "more": False}


def _send_fds(sock: socket.socket, message: dict[str, object], fds: list[int]) -> None:
    sock.sendmsg([json.dumps(message).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@pytest.mark.parametrize(
    "message",
    [
        {"op": "get", "name": "x"},
        {"op": "put", "name": "x", "fds": ["a", "b"]},
        {"op": "put", "name": "x", "fds": ["a\x00"]},
        {"op": "put", "name": "x", "fds": ["l" * 65]},
        {"op": "put", "name": "\ud800", "fds": ["a"]},
        {"op": "put", "name": None, "fds": ["a"]},
    ],
)
def test_descriptors_of_a_refused_message_are_closed(
    path: str, client: KeeperClient, message: dict[str, object]
) -> None:
    reader, writer = os.pipe()
    with raw(path) as sock:
        _send_fds(sock, message, [writer])
        os.close(writer)
        assert json.loads(sock.recv(10_000))["ok"] is False
        assert os.read(reader, 1) == b""
    os.close(reader)
    assert client.deposits() == []


def test_half_a_deposit_does_not_count(path: str, client: KeeperClient) -> None:
    reader, writer = os.pipe()
    with raw(path) as sock:
        _send_fds(sock, {"op": "put", "name": "x", "fds": ["a"], "more": True}, [writer])
        os.close(writer)
        _send_fds(sock, {"op": "put", "name": "y", "fds": ["b"], "more": True}, [reader])
        assert "must be complete before the next" in sock.recv(10_000).decode()
    assert os.read(reader, 1) == b""
    assert client.deposits() == []
    reader2, writer = os.pipe()
    with raw(path) as sock:
        _send_fds(sock, {"op": "put", "name": "x", "fds": ["a"], "more": True}, [writer])
        os.close(writer)
    assert os.read(reader2, 1) == b""
    os.close(reader)
    os.close(reader2)


def test_a_client_that_reads_no_answers_delays_no_other(path: str, client: KeeperClient) -> None:
    put(client, URI, **{f"irq{i}": b"" for i in range(200)})
    with raw(path) as sock:
        sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while sent < 100_000:
                sock.send(b'{"op": "list"}')
                sent += 1
        for _ in range(20):
            assert len(client.deposits()) == 1
        eventually(lambda: select.select([sock], [], [], 0)[0])


def test_silent_clients_are_disconnected_but_owners_are_not(tmp_path: Path) -> None:
    path = str(tmp_path / "k.sock")
    keeper = Keeper(listen(path), patience=0.2)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        program = "import socket, sys; s = socket.socket(1, 5); s.connect(sys.argv[1]); print(repr(s.recv(1)))"
        silent = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, path], capture_output=True, text=True, timeout=30, check=True
        )
        assert silent.stdout.strip() == "b''"
        with KeeperClient(path) as owner:
            put(owner, URI, pool=b"P")
            assert not select.select([owner], [], [], 0.7)[0]
            assert len(owner.deposits()) == 1
    finally:
        keeper.stop()
        thread.join(10)
    assert not thread.is_alive()


def test_too_many_connections_are_refused_with_the_reason(
    path: str, client: KeeperClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, URI, pool=b"P")
    with contextlib.ExitStack() as stack:
        refused = b""
        for _ in range(300):
            sock = stack.enter_context(raw(path))
            sock.settimeout(0.0)
            with contextlib.suppress(BlockingIOError):
                refused = sock.recv(1000)
                break
            sock.settimeout(0.002)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                refused = sock.recv(1000)
                break
        assert b"the limit of 256 connections is reached" in refused
        assert len(client.deposits()) == 1


def test_a_deposit_has_a_limit(path: str, client: KeeperClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvme_async.keepalive.keeper import ledger

    monkeypatch.setattr(ledger, "MAX_DEPOSITS", 3)
    own = str(Path(path).parent / "own.sock")
    keeper = Keeper(listen(own))
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        with KeeperClient(own) as mine:
            for name in "abc":
                put(mine, name, pool=b"P")
            for attempt in (lambda: put(mine, "d", pool=b"P"), lambda: mine.get("e")):
                with pytest.raises(KeeperError, match=r"the limit of \d+ .* is reached") as refused:
                    attempt()
                assert refused.value.code == "limit"
            put(mine, "a", pool=b"again")
            assert len(mine.deposits()) == 3
    finally:
        keeper.stop()
        thread.join(10)


def test_the_keeper_process_imports_nothing_of_this_package(path: str, client: KeeperClient) -> None:
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    for pid in pids:
        with contextlib.suppress(OSError):
            if path.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                maps = Path(f"/proc/{pid}/maps").read_text()
                break
    assert "nvme_async/_" not in maps
    assert "site-packages" not in maps
