"""The descriptor store, against a supervisor that emulates systemd: its notify socket, store and
restarts.
"""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvme_async.errors import ConfigurationError, KeeperError
from nvme_async.keepalive import systemd
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.systemd import SystemdStore, fdname, listen_fds, notify

URI = "vfio-user:/run/a controller:with colons.sock"


class Supervisor:
    """A service manager with a store, as far as sd_notify(3) describes one."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address, "FDSTORE": "512"}
        self.store: list[tuple[str, int]] = []
        self.messages: list[list[str]] = []
        self.silent = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, ancillary, flags, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
            assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            fds = array.array("i")
            for _, _, payload in ancillary:
                fds.frombytes(payload)
            lines = data.decode().splitlines()
            if lines == ["STOP"]:
                return
            self.messages.append(lines)
            values = dict(line.split("=", 1) for line in lines)
            name = values.get("FDNAME", "stored")
            if values.get("FDSTORE") == "1":
                assert len(fds) >= 1
                for fd in fds:
                    if any(systemd._same_file(held, fd) for _, held in self.store):
                        os.close(fd)
                    else:
                        self.store.append((name, fd))
            else:
                if values.get("FDSTOREREMOVE") == "1":
                    for entry in [entry for entry in self.store if entry[0] == name]:
                        self.store.remove(entry)
                        os.close(entry[1])
                if not self.silent:
                    for fd in fds:
                        os.close(fd)  # BARRIER=1

    def run(self, program: str, *, kill: bool = False) -> str:
        """Starts the service with the stored descriptors, as systemd does, and waits for its
        end.
        """
        fds = [fd for _, fd in self.store]

        # A fresh table for the child: descriptors 3, 4, … in the store's order.
        setup = textwrap.dedent(f"""
            import os
            fds = {fds!r}
            high = [os.dup2(fd, 1000 + i) for i, fd in enumerate(fds)]
            os.closerange(3, 1000)
            [os.dup2(fd, 3 + i) for i, fd in enumerate(high)]
            os.closerange(1000, 1000 + len(fds))
            os.environ["LISTEN_PID"] = str(os.getpid())
        """)
        environ = {**os.environ, **self.environ}
        if fds:
            environ |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(name for name, _ in self.store)}
        result = subprocess.run(
            [sys.executable, "-c", setup + textwrap.dedent(program)],
            pass_fds=fds,
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == (-9 if kill else 0)
        return result.stdout

    def close(self) -> None:
        notify("STOP", environ=self.environ)
        self._thread.join(10)
        self._socket.close()
        for _, fd in self.store:
            os.close(fd)


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervisor]:
    address = (
        str(tmp_path / "notify") if request.param == "path" else "@" + tempfile.mktemp(dir="", prefix="nvme-async-test")
    )
    supervisor = Supervisor(address)
    yield supervisor
    supervisor.close()


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    descriptors = {label: os.memfd_create(label) for label in ("pool", "device.socket", "irq.0", "irq.1")}
    os.write(descriptors["pool"], b"the pool")
    with Bundle(URI, b"", descriptors) as bundle:
        yield bundle


def stored(supervisor: Supervisor) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: os.pread(fd, 100, 0) for name, fd in supervisor.store}


def test_stored_descriptors(supervisor: Supervisor, bundle: Bundle) -> None:
    store = SystemdStore(supervisor.environ)
    assert store.available
    store.deposit(bundle)
    assert stored(supervisor) == {"pool": b"the pool", "device.socket": b"", "irq.0": b"", "irq.1": b""}
    assert supervisor.messages[0] == ["FDSTORE=1", "FDPOLL=0", f"FDNAME={fdname(URI, 'pool')}"]
    for name, _ in supervisor.store:
        assert ":" not in name
        assert len(name) <= 255
    count = len(supervisor.messages)
    store.deposit(bundle)
    assert supervisor.messages[count:] == [["BARRIER=1"]], "what is there isn't sent again"
    store.close()
    assert len(supervisor.store) == 4


def test_changed_descriptors_are_replaced_and_missing_ones_removed(supervisor: Supervisor, bundle: Bundle) -> None:
    store = SystemdStore(supervisor.environ)
    store.deposit(bundle)
    os.close(bundle.descriptors.pop("irq.1"))
    os.close(bundle.descriptors["irq.0"])
    bundle.descriptors["irq.0"] = os.memfd_create("new")
    os.write(bundle.descriptors["irq.0"], b"new")
    store.deposit(bundle)
    assert stored(supervisor) == {"pool": b"the pool", "device.socket": b"", "irq.0": b"new"}
    store.drop(URI)
    assert supervisor.store == []
    store.drop(URI)
    store.close()


def test_two_controllers(supervisor: Supervisor, bundle: Bundle) -> None:
    store = SystemdStore(supervisor.environ)
    store.deposit(bundle)
    with Bundle("vfio-user:/other", b"", {"pool": os.memfd_create("other")}) as other:
        store.deposit(other)
    assert len(supervisor.store) == 5
    store.drop(URI)
    assert [name for name, _ in supervisor.store] == [fdname("vfio-user:/other", "pool")]
    store.close()


def test_without_a_service_manager(bundle: Bundle, tmp_path: Path) -> None:
    store = SystemdStore({})
    assert not store.available
    assert store.take(URI) is None
    with pytest.raises(KeeperError, match="NOTIFY_SOCKET"):
        store.deposit(bundle)
    assert not SystemdStore({"NOTIFY_SOCKET": "/run/x"}).available, "no store was granted"
    assert not SystemdStore({"NOTIFY_SOCKET": "/run/x", "FDSTORE": "0"}).available
    gone = SystemdStore({"NOTIFY_SOCKET": str(tmp_path / "gone"), "FDSTORE": "9"})
    with pytest.raises(KeeperError, match="No such file"):
        gone.deposit(bundle)
    with pytest.raises(KeeperError, match="must be a path or"):
        notify("READY=1", environ={"NOTIFY_SOCKET": "vsock:2:1"})
    assert notify("READY=1", environ={}) is False


def test_a_service_manager_that_does_not_confirm(supervisor: Supervisor, bundle: Bundle) -> None:
    supervisor.silent = True
    store = SystemdStore(supervisor.environ, timeout=0.1)
    with pytest.raises(KeeperError, match="did not confirm"):
        store.deposit(bundle)
    store.close()


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "\x7f", "é", "x" * 256])
def test_names_that_systemd_refuses(name: str) -> None:
    with pytest.raises(ConfigurationError):
        systemd.check_fdname(name)
    assert len(fdname("x" * 100_000, "irq.2047")) < 60


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "2"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "two"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {"LISTEN_PID": str(os.getpid())},
    ],
)
def test_foreign_descriptors_are_ignored(environ: dict[str, str]) -> None:
    assert listen_fds(environ) == []


def test_names_of_listen_fds() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b"}
    assert listen_fds(environ) == [("a", 3), ("b", 4), ("unknown", 5)]
    # A list of descriptors that aren't open is harmless.
    wrong = {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": "900",
        "LISTEN_FDNAMES": ":".join(["x"] * 899 + [fdname(URI, "pool")]),
    }
    assert SystemdStore(wrong).take(URI) is None


PROGRAM = f"""
    import os
    from nvme_async.keepalive.bundle import Bundle
    from nvme_async.keepalive.systemd import store
    uri = {URI!r}
    bundle = store().take(uri)
    if bundle is None:
        print("fresh")
        bundle = Bundle(uri, b"", {{"pool": os.memfd_create("pool"), "irq.0": os.eventfd(0)}})
        os.write(bundle.descriptors["pool"], b"1")
    else:
        generation = int(os.pread(bundle.descriptors["pool"], 10, 0))
        assert not any(os.get_inheritable(fd) for fd in bundle.descriptors.values())
        print("generation", generation, sorted(bundle.descriptors))
        os.pwrite(bundle.descriptors["pool"], str(generation + 1).encode(), 0)
    store().deposit(bundle)
"""


def test_the_store_survives_restarts(tmp_path: Path) -> None:
    supervisor = Supervisor(str(tmp_path / "notify"))
    try:
        assert supervisor.run(PROGRAM) == "fresh\n"
        assert supervisor.run(PROGRAM) == "generation 1 ['irq.0', 'pool']\n"
        assert supervisor.run(
            PROGRAM + "    import sys; sys.stdout.flush(); os.kill(os.getpid(), 9)\n", kill=True
        ).startswith("generation 2")
        assert supervisor.run(PROGRAM) == "generation 3 ['irq.0', 'pool']\n"
        assert len(supervisor.store) == 2
        assert supervisor.run(PROGRAM + "    store().drop(uri)\n") == "generation 4 ['irq.0', 'pool']\n"
        assert supervisor.store == []
        assert supervisor.run(PROGRAM) == "fresh\n"
    finally:
        supervisor.close()


def test_an_incomplete_bundle_is_discarded(tmp_path: Path) -> None:
    supervisor = Supervisor(str(tmp_path / "notify"))
    try:
        supervisor.store.append((fdname(URI, "irq.0"), os.eventfd(0)))
        supervisor.store.append(("the application's", os.eventfd(0)))
        assert supervisor.run(PROGRAM) == "fresh\n"
        assert sorted(name.rpartition("/")[2] for name, _ in supervisor.store) == ["irq.0", "pool", "the application's"]
        assert supervisor.run(PROGRAM) == "generation 1 ['irq.0', 'pool']\n"
    finally:
        supervisor.close()
