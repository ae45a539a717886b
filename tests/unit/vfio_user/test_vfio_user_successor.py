"""The vfio-user client: how a connection is made, and how a successor continues with it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from fake_vfio_user import (
    GET_INFO,
    REGION_READ,
    REGION_WRITE,
    VERSION,
    FakeServer,
    attach,
)

from nvme_async.device import Device, open_device, parse_uri, resume_device
from nvme_async.device.vfio_user import VfioUserDevice
from nvme_async.errors import (
    ConfigurationError,
    ControllerGone,
    ControllerTimeout,
    InvalidSavedState,
)


@pytest.mark.usefixtures("no_garbage_of_others", "no_descriptor_is_left")
class TestConnect:
    def test_connecting_to_a_path(self, tmp_path: Path) -> None:
        path = tmp_path / "ctrl.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            opened: list[Device] = []
            thread = threading.Thread(target=lambda: opened.append(open_device(f"vfio-user:{path}")))
            thread.start()
            connection, _ = listener.accept()
            with FakeServer(connection):
                thread.join()
                assert opened[0].uri == f"vfio-user:{path}"
                assert opened[0].read32(0) == 0
                opened[0].close()

    def test_a_missing_listener_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ControllerGone, match="No such file"):
            open_device(f"vfio-user:{tmp_path}/none")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "dead"))
        with pytest.raises(ControllerGone, match="refused"):
            open_device(f"vfio-user:{tmp_path}/dead")

    def test_backlog_full(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(str(tmp_path / "busy"))
            listener.listen(0)
            first.connect(str(tmp_path / "busy"))
            with pytest.raises(ControllerTimeout, match=r"not accepted a connection in 0\.1 s"):
                open_device(f"vfio-user:{tmp_path}/busy", timeout=0.1)

    @pytest.mark.parametrize(
        ("uri", "parsed"),
        [
            ("pci:0000:01:00.0", ("pci", "0000:01:00.0")),
            ("pci:01:1F.7", ("pci", "0000:01:1f.7")),
            ("PCI:10000:01:00.0", ("pci", "10000:01:00.0")),
            ("vfio-user:/run/ctrl.sock", ("vfio-user", "/run/ctrl.sock")),
            ("vfio-user:a:b", ("vfio-user", "a:b")),
            ("emulated:", ("emulated", "")),
            ("emulated:size=1GiB,block=512", ("emulated", "size=1GiB,block=512")),
        ],
    )
    def test_uris(self, uri: str, parsed: tuple[str, str]) -> None:
        assert parse_uri(uri) == parsed

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("", "must begin with one of pci:, vfio-user:, emulated:"),
            ("nvme:0", "'nvme:0' must begin"),
            ("/dev/nvme0", "must begin"),
            ("emulated", "must begin"),
            ("pci:", "not a PCI address"),
            ("pci:0000:01:00", "not a PCI address"),
            ("pci:0000:01:20.0", "not a PCI address"),
            ("pci:0000:01:00.8", "not a PCI address"),
            ("pci:0000:01:00.0/", "not a PCI address"),
            ("vfio-user:", "names no socket"),
            ("vfio-user:" + "x" * 108, "at most 107 bytes"),
        ],
    )
    def test_bad_uris(self, uri: str, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            open_device(uri)


def duplicates(device: VfioUserDevice) -> dict[str, int]:
    return {name: os.dup(fd) for name, fd in device.descriptors().items()}


@pytest.mark.usefixtures("no_garbage_of_others", "no_descriptor_is_left")
class TestSuccessor:
    def test_resume(self, server: FakeServer) -> None:
        device = attach(server)
        device.write32(0x14, 1)
        saved = json.loads(json.dumps(device.save()))
        descriptors = duplicates(device)
        assert set(descriptors) == {"socket", "doorbell", "kick"}
        device.detach()
        before = len(server.requests)
        with resume_device("vfio-user:/x", descriptors, saved) as successor:  # type: ignore[attr-defined]
            assert server.commands()[before:] == [GET_INFO] + 3 * [REGION_READ], "is it there, who is it; no handshake"
            assert successor.uri == "vfio-user:/x"
            assert (successor.ids, successor.n_vectors) == (device.ids, 9)
            assert successor.read32(0x14) == 1
            mmio = successor.doorbells().mmio
            mmio.write32(4, 77)
            assert os.pread(server.page, 4, 0x1004) == struct.pack("<I", 77)
            os.eventfd_write(successor.doorbells().kick_fd, 1)
            assert os.eventfd_read(server.kick) == 1

    def test_resume_without_saved_state(self, server: FakeServer) -> None:
        device = attach(server)
        descriptors = {"socket": os.dup(device.descriptors()["socket"])}
        device.detach()
        before = len(server.requests)
        with VfioUserDevice.resume(descriptors) as successor:
            asked = server.commands()[before:]
            assert VERSION not in asked
            assert REGION_WRITE not in asked
            assert successor.ids == device.ids
            assert successor.doorbells().mmio is not None

    def test_a_successor_can_remove_its_predecessors_vectors(self, server: FakeServer) -> None:
        eventfd = os.eventfd(0)
        device = attach(server)
        device.set_interrupts([eventfd] * 9)
        saved, descriptors = device.save(), duplicates(device)
        device.detach()
        with VfioUserDevice.resume(descriptors, saved) as successor:
            successor.set_interrupts([eventfd])
            assert set(server.vectors) == {0}
        os.close(eventfd)

    def test_detach_leaves_the_connection(self, server: FakeServer) -> None:
        device = attach(server)
        kept = os.dup(device.descriptors()["socket"])
        device.detach()
        device.detach()
        poll = select.poll()
        poll.register(server.sock, select.POLLRDHUP)
        assert poll.poll(20) == []
        with pytest.raises(ControllerGone, match="closed"):
            device.descriptors()
        os.close(kept)

    def test_close_ends_it_for_all_holders(self, server: FakeServer) -> None:
        device = attach(server)
        kept = os.dup(device.descriptors()["socket"])
        device.close()
        poll = select.poll()
        poll.register(server.sock, select.POLLRDHUP)
        assert poll.poll(5000) != []
        os.close(kept)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda saved: saved.pop("bar0_size"), "bar0_size"),
            (lambda saved: saved.update(n_vectors="many"), "n_vectors"),
            (lambda saved: saved.update(ids=None), "ids"),
        ],
    )
    def test_damaged_state(self, server: FakeServer, change: object, message: str) -> None:
        device = attach(server)
        saved, descriptors = device.save(), duplicates(device)
        change(saved)  # type: ignore[operator]
        with pytest.raises(InvalidSavedState, match=message):
            VfioUserDevice.resume(descriptors, saved)
        assert device.read32(0) == 0, "it goes on where it is"
        device.close()

    def test_descriptors_missing(self, server: FakeServer) -> None:
        device = attach(server)
        saved = device.save()
        with pytest.raises(InvalidSavedState, match="without its socket"):
            VfioUserDevice.resume({"kick": os.dup(device.descriptors()["kick"])}, saved)
        with pytest.raises(InvalidSavedState, match="doorbell descriptor is missing"):
            VfioUserDevice.resume({"socket": os.dup(device.descriptors()["socket"])}, saved)
        with pytest.raises(InvalidSavedState, match="not a vfio-user socket"):
            VfioUserDevice.resume({"socket": os.eventfd(0)}, saved)
        device.close()

    def test_killed_at_any_instant(self, server: FakeServer) -> None:
        """Children that use the socket are killed; each successor must find it in a usable
        state.
        """
        device = attach(server)
        device.write32(0, 0xAAAA)
        saved, socket_fd = device.save(), os.dup(device.descriptors()["socket"])
        shared = duplicates(device)
        device.detach()
        count = 0
        for round_number in range(40):
            started_read, started_write = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    victim = VfioUserDevice.resume({name: os.dup(fd) for name, fd in shared.items()}, saved)
                    os.write(started_write, b"x")
                    while True:
                        victim.write64(8, victim.read64(8) + 1)
                        victim.doorbells()
                        VfioUserDevice.resume({"socket": os.dup(socket_fd)}).detach()
                finally:
                    os._exit(1)
            assert os.read(started_read, 1) == b"x"
            time.sleep(round_number % 20 * 0.0007)
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            os.close(started_read)
            os.close(started_write)
            successor = VfioUserDevice.resume({name: os.dup(fd) for name, fd in shared.items()}, saved)
            assert successor.read32(0) == 0xAAAA
            count, before = successor.read64(8), count
            assert count >= before, "no request of a dead process is carried out after its successor's"
            successor.detach()
        os.close(socket_fd)
        for fd in shared.values():
            os.close(fd)
