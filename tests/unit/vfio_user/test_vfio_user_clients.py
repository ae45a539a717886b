"""The vfio-user server against clients that misbehave, die, reconnect, idle, or were observed in
practice.
"""

from __future__ import annotations

import array
import contextlib
import gc
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_vfio_user import (
    ACQ,
    AQA,
    ASQ,
    CC,
    CSTS,
    GET_INFO,
    HEADER,
    REGION_READ,
    VERSION,
    Admin,
    RawClient,
    Refused,
)

from nvme_async.emulator import EmulatedController
from nvme_async.errors import ConfigurationError


@pytest.fixture
def controller():
    with EmulatedController("size=1MiB", patience=0.3) as controller:
        yield controller


@pytest.fixture
def path(controller, tmp_path):
    path = str(tmp_path / "c.sock")
    controller.listen(path)
    return path


def assert_next_is_served(path):
    with RawClient.dial(path) as client:
        assert client.reg32(CSTS) == 0
        assert len(Admin(client).identify()) == 4096


@contextlib.contextmanager
def raw_socket(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(30)
        sock.connect(path)
        yield sock


def open_fds():
    return len(os.listdir("/proc/self/fd"))


def memory_maps():
    """Mappings of memfds: those of clients and of doorbells."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:" in line for line in maps)


def settle(controller):
    """Until the server has noticed that its client is gone."""
    end = time.monotonic() + 30
    while controller.stats()["connected"]:
        assert time.monotonic() < end
        time.sleep(0.001)


def is_closed(sock):
    with contextlib.suppress(ConnectionResetError):  # closing a socket with unread data has this effect
        while sock.recv(65536):
            pass
    return True


VERSION_MESSAGE = HEADER.pack(0, VERSION, 20, 0, 0) + struct.pack("<HH", 0, 1)


class TestBadClients:
    @pytest.mark.parametrize(
        "start",
        [
            pytest.param(b"", id="silent"),
            pytest.param(VERSION_MESSAGE[:7], id="half a header"),
            pytest.param(VERSION_MESSAGE[:18], id="half a body"),
            pytest.param(VERSION_MESSAGE + HEADER.pack(0, GET_INFO, 32, 0, 0), id="half a second message"),
        ],
    )
    def test_a_client_that_leaves_a_message_incomplete_is_dropped(self, path, start):
        with raw_socket(path) as sock:
            sock.sendall(start)
            assert_next_is_served(path)

    def test_a_trickling_client_is_dropped(self, path):
        with raw_socket(path) as sock:
            sock.sendall(VERSION_MESSAGE + HEADER.pack(0, GET_INFO, 1 << 20, 0, 0))
            done = threading.Event()

            def trickle():
                with contextlib.suppress(OSError):
                    while not done.wait(0.02):
                        sock.send(b"x")

            thread = threading.Thread(target=trickle)
            thread.start()
            try:
                assert_next_is_served(path)
            finally:
                done.set()
                thread.join()

    def test_a_client_that_reads_no_replies_is_dropped(self, path, controller):
        with raw_socket(path) as sock:
            sock.sendall(VERSION_MESSAGE)
            ask = HEADER.pack(0, REGION_READ, 32, 0, 0) + struct.pack("<QII", 0, 7, 4096)
            sock.settimeout(2)
            with contextlib.suppress(OSError):
                for _ in range(100_000):
                    sock.sendall(ask)
            assert_next_is_served(path)

    def test_an_idle_client_that_did_nothing_wrong_may_stay(self, path):
        with RawClient.dial(path) as client:
            time.sleep(0.6)
            assert client.reg32(CSTS) == 0

    @pytest.mark.parametrize("size", [0, 1, 15, (1 << 20) + 33, 0x7FFFFFFF, 0xFFFFFFFF])
    def test_impossible_sizes_end_the_connection(self, path, controller, size):
        with raw_socket(path) as sock:
            sock.sendall(VERSION_MESSAGE + HEADER.pack(0, GET_INFO, size, 0, 0))
            assert len(sock.recv(65536)) > 16
            assert sock.recv(65536) == b""
        assert "message size" in controller.stats()["last_drop"]
        assert_next_is_served(path)

    def test_the_largest_message_is_read_and_refused(self, path):
        with RawClient.dial(path) as client, pytest.raises(Refused):
            client.write(0, 0, bytes(1 << 20))
        assert_next_is_served(path)

    def test_a_reply_ends_the_connection(self, path):
        with RawClient.dial(path) as client:
            with contextlib.suppress(BrokenPipeError):  # the header is enough for the server
                client.send(GET_INFO, bytes(16), flags=1)
            assert client.closed_by_peer()
        assert_next_is_served(path)

    def test_unexpected_descriptors_are_closed(self, path):
        with RawClient.dial(path) as client:
            before = open_fds()
            for _ in range(50):
                client.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), (0,) * 16)
            assert open_fds() == before

    @pytest.mark.parametrize("n", [17, 253])
    def test_a_flood_of_descriptors_ends_the_connection(self, path, controller, n):
        before = open_fds()
        with raw_socket(path) as sock:
            sock.sendmsg([VERSION_MESSAGE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * n))])
            assert is_closed(sock)
        assert_next_is_served(path)
        settle(controller)
        assert open_fds() == before

    def test_descriptors_of_an_unfinished_message_are_closed(self, path, controller):
        before = open_fds()
        with raw_socket(path) as sock:
            sock.sendmsg([VERSION_MESSAGE[:10]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 16))])
        assert_next_is_served(path)
        settle(controller)
        assert open_fds() == before

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.binary(max_size=400), after_version=st.booleans())
    def test_random_bytes(self, path, data, after_version):
        with raw_socket(path) as sock, contextlib.suppress(OSError):
            sock.sendall((VERSION_MESSAGE if after_version else b"") + data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        assert_next_is_served(path)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        messages=st.lists(
            st.tuples(
                st.integers(0, 20),
                st.integers(0, 0x3F),
                st.integers(-20, 20),
                st.lists(st.sampled_from([0, 1, 7, 16, 32, 0xFFFFFFFF, 0x1000, 3, 36, 64]), max_size=12),
                st.integers(0, 3),
            ),
            max_size=8,
        )
    )
    def test_random_messages(self, path, messages):
        """Valid frames, invalid content; the next client finds a clean controller
        nevertheless.
        """
        with raw_socket(path) as sock, contextlib.suppress(OSError):
            sock.sendall(VERSION_MESSAGE)
            for command, flags, lie, words, n_fds in messages:
                payload = struct.pack(f"<{len(words)}I", *words)
                size = max(0, HEADER.size + len(payload) + (lie if lie > 10 else 0))
                fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * n_fds))] if n_fds else []
                sock.sendmsg([HEADER.pack(1, command, size, flags, 0) + payload], fds)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        assert_next_is_served(path)


class TestSuccession:
    def test_a_second_client_waits_for_the_first(self, path):
        with RawClient.dial(path) as first:
            second = RawClient.dial(path, handshake=False)
            with second:
                second.send(VERSION, struct.pack("<HH", 0, 1))
                assert not select.select([second.sock], [], [], 0.1)[0]
                assert first.reg32(CSTS) == 0
                first.close()
                assert second.receive()[1] == VERSION

    def test_only_one_client_in_process(self, controller):
        with RawClient(controller.connect()), pytest.raises(OSError, match="busy"):
            controller.connect()
        with RawClient(controller.connect()) as client:
            assert client.reg32(CSTS) == 0

    def test_a_client_leaves_nothing_behind(self, controller):
        for _ in range(5):
            with RawClient(controller.connect()) as client:
                assert client.reg32(CSTS) == client.reg32(CC) == 0
                assert client.read(7, 4, 2) == b"\0\0"
                assert client.read(4, 0, 16) == bytes(16)
                assert controller.stats()["mappings"] == controller.stats()["vectors"] == 0
                admin = Admin(client, "kick")
                assert len(admin.identify()) == 4096
                client.write(4, 0, b"x" * 16)

    def test_an_owner_may_drop_the_client(self, controller):
        with RawClient(controller.connect()) as client:
            controller.drop_client()
            assert client.closed_by_peer()
        assert controller.stats()["last_drop"] == "dropped by the owner"

    def test_an_old_kick_does_not_count_for_the_next_client(self, controller):
        with RawClient(controller.connect()) as client:
            Admin(client, "kick").identify()
            kick = os.dup(client.received[-1])
        try:
            with RawClient(controller.connect()) as client:
                Admin(client, "page").identify()
                os.eventfd_write(kick, 1)
                assert controller.stats()["kicked"] is False
        finally:
            os.close(kick)

    def test_an_old_doorbell_page_has_no_effect(self, controller):
        with RawClient(controller.connect()) as old:
            page = old.doorbell_page()
            old.sock.close()
            settle(controller)
            with RawClient(controller.connect()) as client:
                admin = Admin(client, "page")
                invalid = controller.faults.counters()["invalid_doorbells"]
                page[0:4] = b"\xff\xff\0\0"
                assert len(admin.identify()) == 4096
                assert controller.faults.counters()["invalid_doorbells"] == invalid

    def test_everything_is_released(self):
        gc.collect()
        before = open_fds(), memory_maps(), threading.active_count(), len(os.listdir("/proc/self/task"))
        for options in ("size=1MiB", "size=1MiB,reactor=own", "size=1MiB,medium=null"):
            with EmulatedController(options) as controller:
                for ring in ("message", "page", "kick"):
                    with RawClient(controller.connect()) as client:
                        Admin(client, ring).identify()
                left_open = RawClient(controller.connect())
                Admin(left_open, "kick").identify()
            left_open.close()

        def now():
            return open_fds(), memory_maps(), threading.active_count(), len(os.listdir("/proc/self/task"))

        end = time.monotonic() + 30
        while now() != before and time.monotonic() < end:  # a thread that was joined may still be listed
            time.sleep(0.001)
        assert now() == before

    def test_closing_twice_and_using_after(self, controller):
        controller.close()
        controller.close()
        assert controller.closed
        with pytest.raises(ValueError, match="closed"):
            controller.connect()
        with pytest.raises(ValueError, match="closed"):
            controller.stats()

    def test_close_while_others_call(self):
        controller = EmulatedController("size=1MiB")
        errors = []

        def call():
            try:
                while True:
                    controller.stats()
            except ValueError:
                return
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        controller.close()
        for thread in threads:
            thread.join(5)
        assert errors == []

    def test_a_forked_child_does_not_affect_the_parent(self, controller):
        with RawClient(controller.connect()) as client:
            admin = Admin(client, "kick")
            pid = os.fork()
            if pid == 0:
                controller.close()
                del controller
                gc.collect()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert len(admin.identify()) == 4096


class TestListening:
    def test_a_stale_socket_is_replaced_and_removed_at_the_end(self, tmp_path):
        path = tmp_path / "c.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with EmulatedController("size=1MiB") as controller:
            controller.listen(path)
            assert path.stat().st_mode & 0o777 == 0o600
            assert_next_is_served(str(path))
        assert not path.exists()

    def test_a_live_socket_or_a_file_is_not_replaced(self, path, tmp_path):
        ordinary = tmp_path / "file"
        ordinary.write_text("precious")
        with EmulatedController("size=1MiB") as other:
            with pytest.raises(ConfigurationError, match="in use"):
                other.listen(path)
            with pytest.raises(ConfigurationError, match="not a socket"):
                other.listen(ordinary)
            with pytest.raises(ConfigurationError, match="cannot listen"):
                other.listen(tmp_path / ("x" * 200))
        assert ordinary.read_text() == "precious"
        assert_next_is_served(path)


def test_a_client_seen_in_the_field(controller):
    """VERSION without JSON, always msg_id 0, padded region queries, memory at its own address,
    8-byte ASQ and ACQ, no interrupts; it ends with CC.SHN, DMA_UNMAP and close.
    """
    with RawClient(controller.connect(), handshake=False) as client:

        def call(command, payload, fds=()):
            client.send(command, payload, fds)
            msg_id, answered, flags, error, answer = client.receive()
            assert (msg_id, answered, flags, error) == (0, command, 1, 0)
            return answer

        assert call(VERSION, struct.pack("<HH", 0, 1))[:4] == struct.pack("<HH", 0, 1)
        call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
        info = call(5, struct.pack("<IIIIQQ", 0xFE0, 0, 0, 0, 0, 0).ljust(0xFE0, b"\0"))
        area = struct.unpack_from("<HHIIIQQ", info, struct.unpack_from("<I", info, 12)[0])
        assert area == (1, 1, 0, 1, 0, 0x1000, 0x1000)
        assert struct.unpack_from("<Q", info, 24) == (0,)
        admin = Admin.__new__(Admin)
        admin.client, admin.kick, admin.IOVA = client, -1, 0x7F12_3400_0000
        admin.page = client.doorbell_page()
        admin.fd = os.memfd_create("huge", os.MFD_CLOEXEC)
        client.exits.callback(os.close, admin.fd)
        os.ftruncate(admin.fd, 256 << 20)
        admin.memory = mmap.mmap(admin.fd, 256 << 20)
        client.exits.callback(admin.memory.close)
        admin.interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        client.exits.callback(os.close, admin.interrupt)
        client.dma_map(admin.IOVA, 256 << 20, admin.fd)
        client.write(7, 4, struct.pack("<H", 0x406))
        admin.enable()
        for offset, value in ((ASQ, admin.IOVA), (ACQ, admin.IOVA + 4096)):
            assert client.reg64(offset) == value
        assert client.reg32(AQA) == 0xF000F
        assert admin.identify()[24:34] == b"nvme_async"
        client.reg32(CC, client.reg32(CC) | 1 << 14)
        deadline = time.monotonic() + 5
        while client.reg32(CSTS) >> 2 & 3 != 2:
            assert time.monotonic() < deadline
        client.dma_unmap(admin.IOVA, 256 << 20)


CLIENT = """
import sys
sys.path.insert(0, sys.argv[2])
from raw_vfio_user import *
admin = Admin(RawClient.dial(sys.argv[1]), sys.argv[3])
print("ready", flush=True)
while True:
    admin.identify()
"""


def kill_clients(path, times):
    for i in range(times):
        ring = ("message", "page", "kick")[i % 3]
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, path, str(Path(__file__).parents[1]), ring], stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout.readline() == b"ready\n"
                time.sleep(0.002 * (i % 5))
            finally:
                process.send_signal(signal.SIGKILL)
        assert_next_is_served(path)


def test_killed_clients(path, controller):
    before = open_fds(), memory_maps()
    kill_clients(path, 6)
    settle(controller)
    assert (open_fds(), memory_maps()) == before


@pytest.mark.slow
def test_many_killed_clients(path):
    kill_clients(path, 15)  # each kind of doorbell with each delay
