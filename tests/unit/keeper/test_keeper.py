"""The keeper as a separate process: what it hands to whom, and misbehaving clients."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper_process import FOLDER, URI, contents, eventually, put

from nvme_async.errors import ConfigurationError, KeeperError
from nvme_async.keepalive.keeper import wire
from nvme_async.keepalive.keeper.client import Deposit, KeeperClient
from nvme_async.keepalive.keeper.process import listen
from nvme_async.keepalive.keeper.server import Keeper, permitted


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
    with pytest.raises(KeeperError, match=f"belongs to process {other.pid}, which is alive") as refused:
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
    assert second.run(f"client.get({URI!r}, wait=60)") == "done"
    second.kill()
    assert contents(client.get(URI, wait=60)) == {"pool": b"A", "irq.0": b""}


def test_a_closed_connection_does_not_free_the_deposit(client: KeeperClient, other: Other) -> None:
    assert other.run(PUT) == "done"
    assert other.run("client.close()") == "done"
    with pytest.raises(KeeperError, match="still belongs"):
        client.get(URI, wait=0.1)
    found = state(client)
    assert found is not None
    assert found.state == "owned"
    # The process itself may reclaim its deposit, as after an exec.
    assert (
        other.run(f"client = KeeperClient({client.path!r}); fds = client.get({URI!r}); assert len(fds) == 2") == "done"
    )
    other.kill()
    wire.close_all(client.get(URI, wait=60).values())


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
    wire.close_all(client.get(URI, wait=60).values())


def test_an_unknown_name_is_reserved_for_the_first_to_ask(client: KeeperClient, other: Other) -> None:
    assert other.run(f"assert client.get({URI!r}) == {{}}") == "done"
    found = state(client)
    assert found is not None
    assert (found.state, found.pid, found.fds) == ("reserved", other.pid, 0)
    with pytest.raises(KeeperError, match="belongs to"):
        client.get(URI)
    other.kill()
    assert client.get(URI, wait=60) == {}


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
    with pytest.raises(KeeperError, match="no controller y is held"):
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
    assert poll.poll(60_000) == [(reader, select.POLLHUP)]
    os.close(reader)


def test_more_descriptors_than_one_message_takes(client: KeeperClient, other: Other) -> None:
    assert other.run("fds = {f'irq.{i}': os.memfd_create('x') for i in range(700)}") == "done"
    assert other.run("[os.write(fd, label.encode()) for label, fd in fds.items()]") == "done"
    assert other.run(f"client.put({URI!r}, fds)") == "done"
    other.kill()
    found = contents(client.get(URI, wait=60))
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
        _, log = process.communicate(timeout=60)
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
    os.chmod(path, 0o666)  # the file's permissions must not be the only protection
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
