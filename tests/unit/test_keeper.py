"""The keeper as a process of its own: what it hands to whom, and clients that don't behave."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nvme_async.keepalive.keeper as keeper_package
from nvme_async.errors import ConfigurationError, KeeperError
from nvme_async.keepalive.keeper import wire
from nvme_async.keepalive.keeper.client import Deposit, KeeperClient
from nvme_async.keepalive.keeper.process import listen
from nvme_async.keepalive.keeper.server import Keeper, permitted

FOLDER = os.path.dirname(keeper_package.__file__)
URI = "vfio-user:/run/controller.sock"


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it didn't come to pass"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def keeper_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A keeper as it runs in earnest: isolated, without this package."""
    path = str(tmp_path_factory.mktemp("keeper") / "keeper.sock")
    process = subprocess.Popen([sys.executable, "-I", "-S", FOLDER, "--socket", path, "--quiet"])
    eventually(lambda: os.path.exists(path))
    yield path
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not os.path.exists(path)


def empty(path: str) -> bool:
    with KeeperClient(path) as client:
        for deposit in client.deposits():
            if deposit.state == "orphaned" or deposit.pid == os.getpid():
                client.drop(deposit.name, force=True)
        return not client.deposits()


@pytest.fixture
def path(keeper_path: str) -> Iterator[str]:
    """The keeper, with nothing in it."""
    assert empty(keeper_path)
    yield keeper_path
    eventually(lambda: empty(keeper_path))


@pytest.fixture
def client(path: str) -> Iterator[KeeperClient]:
    with KeeperClient(path) as client:
        yield client


class Other:
    """Another process with a client; runs statements one at a time."""

    def __init__(self, path: str) -> None:
        program = textwrap.dedent("""
            import os, sys, traceback
            from nvme_async.keepalive.keeper.client import KeeperClient
            client = KeeperClient(sys.argv[1])
            for line in sys.stdin:
                try:
                    exec(line, globals())
                    print("done", flush=True)
                except Exception as error:
                    print(f"{type(error).__name__} {error}", flush=True)
        """)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self.process.pid

    def start(self, statement: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(statement + "\n")

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, statement: str) -> str:
        self.start(statement)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(path: str) -> Iterator[Other]:
    other = Other(path)
    yield other
    other.kill()


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


PUT = (
    "a, b = os.memfd_create('a'), os.memfd_create('b'); os.write(a, b'A'); "
    f"client.put({URI!r}, {{'pool': a, 'irq.0': b}})"
)


def state(client: KeeperClient, name: str = URI) -> Deposit | None:
    return next((deposit for deposit in client.deposits() if deposit.name == name), None)


# -- who gets what ---------------------------------------------------------------------------------


def test_a_successor_gets_the_descriptors_of_a_process_that_was_killed(client: KeeperClient, other: Other) -> None:
    assert other.run(PUT) == "done"
    owned = state(client)
    assert owned is not None
    assert (owned.state, owned.pid, owned.fds, owned.deposits, owned.successors) == ("owned", other.pid, 2, 1, 0)
    with pytest.raises(KeeperError, match=f"belongs to process {other.pid}, which lives") as refused:
        client.get(URI)
    assert (refused.value.code, refused.value.pid) == ("owned", other.pid)
    other.kill()
    eventually(lambda: (found := state(client)) is not None and found.state == "orphaned")
    fds = client.get(URI)
    assert all(os.get_inheritable(fd) is False for fd in fds.values())
    assert contents(fds) == {"pool": b"A", "irq.0": b""}
    claimed = state(client)
    assert claimed is not None
    assert (claimed.state, claimed.pid, claimed.successors) == ("claimed", os.getpid(), 1)
    put(client, URI, pool=b"mine")
    again = state(client)
    assert again is not None
    assert (again.state, again.fds) == ("owned", 1)


def test_exactly_one_successor_gets_a_deposit(path: str, other: Other) -> None:
    assert other.run(PUT) == "done"
    second, third = Other(path), Other(path)
    try:
        for waiting in (second, third):
            waiting.start(f"fds = client.get({URI!r}, wait=60); client.put({URI!r}, fds)")
            with KeeperClient(path) as client:
                eventually(
                    lambda waiting=waiting: (
                        (found := state(client)) and found.waiting == (1 if waiting is second else 2)
                    )
                )
        other.kill()
        assert second.answer() == "done"
        with KeeperClient(path) as client:
            found = state(client)
            assert found is not None
            assert (found.state, found.pid, found.waiting) == ("owned", second.pid, 1)
            second.kill()
            assert third.answer() == "done"
            found = state(client)
            assert found is not None
            assert (found.state, found.pid, found.successors, found.fds) == ("owned", third.pid, 2, 2)
    finally:
        second.kill()
        third.kill()


def test_after_a_successors_death_the_next_gets_everything(client: KeeperClient, other: Other, path: str) -> None:
    assert other.run(PUT) == "done"
    other.kill()
    second = Other(path)
    assert second.run(f"client.get({URI!r}, wait=5)") == "done"
    second.kill()
    assert contents(client.get(URI, wait=5)) == {"pool": b"A", "irq.0": b""}


def test_a_closed_connection_does_not_free_the_deposit(client: KeeperClient, other: Other) -> None:
    assert other.run(PUT) == "done"
    assert other.run("client.close()") == "done"
    with pytest.raises(KeeperError, match="still belongs"):
        client.get(URI, wait=0.1)
    found = state(client)
    assert found is not None
    assert found.state == "owned"
    # The process itself may come back to what it has, as after an exec.
    assert (
        other.run(f"client = KeeperClient({client.path!r}); fds = client.get({URI!r}); assert len(fds) == 2") == "done"
    )
    other.kill()
    wire.close_all(client.get(URI, wait=5).values())


def test_a_child_that_keeps_the_connection_open_changes_nothing(client: KeeperClient, other: Other) -> None:
    assert other.run(PUT) == "done"
    assert (
        other.run(
            "r, w = os.pipe(); child = os.fork(); child or os.close(w); child or (os.read(r, 1), "
            "os._exit(0)); os.close(r)"
        )
        == "done"
    )
    other.kill()
    wire.close_all(client.get(URI, wait=5).values())


def test_an_unknown_name_is_reserved_for_the_first_to_ask(client: KeeperClient, other: Other) -> None:
    assert other.run(f"assert client.get({URI!r}) == {{}}") == "done"
    found = state(client)
    assert found is not None
    assert (found.state, found.pid, found.fds) == ("reserved", other.pid, 0)
    with pytest.raises(KeeperError, match="belongs to"):
        client.get(URI)
    other.kill()
    assert client.get(URI, wait=5) == {}


def test_drop_and_release(client: KeeperClient, other: Other) -> None:
    put(client, URI, pool=b"P")
    assert other.run(f"client.drop({URI!r}, force=True)").startswith("KeeperError")
    assert client.drop(URI)
    assert not client.drop(URI)
    assert client.deposits() == []
    put(client, URI, pool=b"P")
    client.release(URI)
    with pytest.raises(KeeperError, match="get it"):
        put(client, URI, pool=b"Q")
    assert other.run(f"assert list(client.get({URI!r})) == ['pool']; client.release({URI!r})") == "done"
    with pytest.raises(KeeperError, match="get it"):
        client.drop(URI)
    assert client.drop(URI, force=True)


def test_a_drop_ends_waits_without_a_bundle(client: KeeperClient, other: Other) -> None:
    put(client, URI, pool=b"P")
    other.start(f"assert client.get({URI!r}, wait=60) == {{}}")
    eventually(lambda: (found := state(client)) is not None and found.waiting)
    client.drop(URI)
    assert other.answer() == "done"
    found = state(client)
    assert found is not None
    assert (found.state, found.pid) == ("reserved", other.pid)


def test_a_deposit_can_be_addressed_to_one_process(client: KeeperClient, other: Other, path: str) -> None:
    put(client, URI, pool=b"P")
    third = Other(path)
    third.start(f"client.get({URI!r}, wait=60)")
    eventually(lambda: (found := state(client)) is not None and found.waiting)
    client.give(URI, other.pid)
    found = state(client)
    assert found is not None
    assert (found.state, found.pid, found.waiting) == ("claimed", other.pid, 1)
    assert other.run(f"fds = client.get({URI!r}); client.put({URI!r}, fds)") == "done"
    other.kill()
    assert third.answer() == "done"
    third.kill()
    put(client, "x", pool=b"P")
    with pytest.raises(KeeperError, match="process"):
        client.give("x", third.pid)
    with pytest.raises(KeeperError, match="there is no y"):
        client.give("y", os.getpid())


def test_a_process_cannot_succeed_itself(client: KeeperClient, path: str) -> None:
    put(client, URI, pool=b"P")
    with KeeperClient(path) as second:
        with pytest.raises(KeeperError, match=f"process {os.getpid()}"):
            second.get(URI)
        with pytest.raises(KeeperError, match=f"process {os.getpid()}"):
            put(second, URI, pool=b"Q")


def test_a_deposit_replaces_the_one_before_and_closes_it(client: KeeperClient) -> None:
    reader, writer = os.pipe()
    client.put(URI, {"pool": writer})
    os.close(writer)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert poll.poll(0) == []
    put(client, URI, pool=b"P")
    assert poll.poll(5000) == [(reader, select.POLLHUP)]
    os.close(reader)


def test_more_descriptors_than_one_message_takes(client: KeeperClient, other: Other) -> None:
    assert other.run("fds = {f'irq.{i}': os.memfd_create('x') for i in range(700)}") == "done"
    assert other.run("[os.write(fd, label.encode()) for label, fd in fds.items()]") == "done"
    assert other.run(f"client.put({URI!r}, fds)") == "done"
    other.kill()
    found = contents(client.get(URI, wait=5))
    assert found == {f"irq.{i}": f"irq.{i}".encode() for i in range(700)}


def test_sigterm_ends_it_and_releases_everything(tmp_path: Path) -> None:
    path = str(tmp_path / "k.sock")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", FOLDER, "--socket", path], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "ready" in process.stderr.readline()
    reader, writer = os.pipe()
    with KeeperClient(path) as client:
        client.put(URI, {"pool": writer})
        os.close(writer)
        process.terminate()
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
        assert URI in log
        assert os.read(reader, 1) == b""
        with pytest.raises(KeeperError, match=r"closed|gone|reset|Broken"):
            client.deposits()
        with pytest.raises(KeeperError, match="closed"):
            client.deposits()
    os.close(reader)


# -- sockets and permissions -----------------------------------------------------------------------


def test_the_socket_file(path: str, tmp_path: Path) -> None:
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="another keeper listens there"):
        listen(path)
    plain = tmp_path / "file"
    plain.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        listen(str(plain))
    stale = str(tmp_path / "stale")
    listen(stale).close()
    listen(stale).close()
    second = subprocess.run(
        [sys.executable, "-I", "-S", FOLDER, "--socket", path], stderr=subprocess.PIPE, text=True, check=False
    )
    assert second.returncode == 1
    assert "another keeper" in second.stderr


def test_connecting_without_a_keeper_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeeperError, match="no keeper at"):
        KeeperClient(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="107"):
        KeeperClient("x" * 200)


def test_who_may_connect() -> None:
    assert permitted(1000, 1000)
    assert permitted(0, 1000)
    assert permitted(0, 0)
    assert not permitted(1000, 1001)
    assert not permitted(1000, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_another_user_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "k.sock")
    listening = listen(path)
    os.chmod(path, 0o666)  # permissions of the file must not be all there is
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            os.chmod(folder, folder.stat().st_mode | 0o011)
    keeper = Keeper(listening)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    program = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5); s.connect(sys.argv[1])\n"
        "print(s.recv(1000).decode()); print(s.recv(1000).decode())"
    )
    try:
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, path], capture_output=True, text=True, check=True, timeout=30
        )
        answer, end = result.stdout.splitlines()
        assert json.loads(answer)["ok"] is False
        assert "user 65534 may not use the keeper of user 0" in answer
        assert end == ""
    finally:
        keeper.stop()
        thread.join(10)


# -- clients that don't behave ---------------------------------------------------------------------


@contextlib.contextmanager
def raw(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(path)
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
        assert "one deposit at a time" in sock.recv(10_000).decode()
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
        assert b"256 connections, which is the limit" in refused
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
                with pytest.raises(KeeperError, match="which is the limit") as refused:
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
