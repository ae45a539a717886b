"""`nvme-async emulate` as a separate process: its start and end, its sockets, its control
socket.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nvme_async.emulator.control import ControlClient

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from raw_vfio_user import Admin, RawClient

COMMAND = [sys.executable, "-m", "nvme_async.cli.main", "emulate"]


class Process:
    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.ready = self.popen.stdout.readline()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=60)
        return self.popen.returncode, out, err

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.end(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(tmp_path, number):
    path, control = str(tmp_path / "c.sock"), str(tmp_path / "control.sock")
    with Process("--socket", path, "--size", "8MiB", "--serial", "ABC", "--control", control) as process:
        assert process.ready == f"nvme-async emulate: ready on {path}\n"
        for _ in range(2):
            with RawClient.dial(path) as client:
                assert Admin(client, "kick").identify()[4:8] == b"ABC "
        assert process.end(number) == (0, "", "")
    assert os.listdir(tmp_path) == []


def test_it_replaces_a_killed_predecessors_sockets(tmp_path):
    path = str(tmp_path / "c.sock")
    for _ in range(2):
        with Process("--socket", path, "--size", "8MiB") as process:
            assert "ready" in process.ready
            process.end(signal.SIGKILL)
        assert os.listdir(tmp_path) == ["c.sock"]
    with Process("--socket", path, "--size", "8MiB") as process, RawClient.dial(path) as client:
        assert len(Admin(client).identify()) == 4096
        assert process.popen.poll() is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "3"], "size=3"),
        (["--size", "many"], "size='many'"),
        (["--queues", "100"], "queues=100"),
        (["--medium", "file"], "path="),
        (["--path", "/nonexistent/dir/disk"], "/nonexistent/dir/disk"),
        (["--control", "/nonexistent/control"], "/nonexistent/control"),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, words):
    with Process("--socket", str(tmp_path / "c.sock"), *arguments) as process:
        code, out, err = process.end()
        assert code in (1, 2)
        assert out == ""
        assert words in err
        assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_is_left_alone(tmp_path):
    path = tmp_path / "c.sock"
    path.write_text("precious")
    with Process("--socket", str(path), "--size", "8MiB") as process:
        assert process.end()[0] in (1, 2)
    assert path.read_text() == "precious"


def test_faults_and_counters_at_run_time(tmp_path):
    path, control = str(tmp_path / "c.sock"), str(tmp_path / "control.sock")
    with Process("--socket", path, "--size", "8MiB", "--control", control), ControlClient(control) as faults:
        rule = faults.call("add", queue="admin", opcode=0x06, fail=0x006, dnr=True, count=1)
        with RawClient.dial(path) as client:
            admin = Admin(client)
            assert (
                admin.command(0x06, prp1=admin.IOVA + 8192, cdw10=1)[1] & ~0x2000 == 0x4006
            )  # without the More bit: the error log has it
            assert len(admin.identify()) == 4096
            faults.call("wait", rule=rule, hits=2, timeout=30)
            assert faults.call("hits", rule=rule) == 2
            assert bytes.fromhex(faults.call("last_command", rule=rule))[0] == 0x06
            assert faults.call("counters")["admin"] == {"6": 1}
            assert faults.call("stats")["connected"] is True
            held = faults.call("add", opcode=0x06, delay="forever", count=1)
            admin.submit(0x06, prp1=admin.IOVA + 8192, cdw10=1)
            faults.call("wait", rule=held)
            (outstanding,) = faults.call("outstanding")
            assert outstanding["ranges"] == [{"iova": admin.IOVA + 8192, "nbytes": 4096, "write": True}]
            faults.call("release")
            assert admin.wait()[1] == 0
            faults.call("drop_client")
            assert client.closed_by_peer()


def test_invalid_control_requests_are_refused(tmp_path):
    path, control = str(tmp_path / "c.sock"), str(tmp_path / "control.sock")
    with Process("--socket", path, "--size", "8MiB", "--control", control):
        with ControlClient(control) as faults:
            for op, args, words in (
                ("explode", {}, "unknown operation"),
                ("add", {"opcod": 1}, "unexpected keyword"),
                ("add", {"queue": "both"}, "queue='both'"),
                ("hits", {"rule": 77}, "unknown fault rule 77"),
                ("wait", {}, "missing"),
                ("resize_namespace", {"nsid": 9, "size": "1MiB"}, "namespace 9"),
            ):
                with pytest.raises(RuntimeError, match=words):
                    faults.call(op, **args)
        for line in (b"\n", b"[]\n", b"{}\n", b'{"op": 5}\n', b'{"op": "stats", "args": 3}\n', b"\xff\n"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(control)
                sock.sendall(line)
                assert b'"ok": false' in sock.recv(4096)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(control)
            try:
                sock.sendall(b"x" * (3 << 20))
                while sock.recv(4096):
                    pass
            except ConnectionError:
                pass
        with ControlClient(control) as faults:
            assert faults.call("stats")["clients"] == 0
