"""nvme-async read, write and flush on an emulated controller whose blocks are in a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest

from nvme_async.cli.main import main
from nvme_async.emulator import EmulatedController

BLOCK = 4096
BLOCKS = 1024


@pytest.fixture
def media(tmp_path: Path) -> Path:
    path = tmp_path / "media"
    path.write_bytes(b"".join(bytes([at % 251]) * BLOCK for at in range(BLOCKS)))
    return path


def cli(*arguments: str, data: bytes | None = None) -> CompletedProcess[bytes]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    command = [sys.executable, "-m", "nvme_async.cli.main", *arguments]
    return run(command, input=data, capture_output=True, timeout=60, env=environment, check=False)


def uri(media: Path) -> str:
    return f"emulated:medium=file,path={media}"


def test_read_to_stdout_and_to_a_file(media: Path, tmp_path: Path) -> None:
    result = cli("read", uri(media), "-s", "3", "-c", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout == bytes([3]) * BLOCK + bytes([4]) * BLOCK  # zero-based: two blocks
    out = tmp_path / "out"
    result = cli("read", uri(media), "--offset", "4KiB", "--length", "3m", "--data", str(out), "-o", "json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer.pop("seconds") > 0
    assert answer == {"nsid": 1, "start_block": 1, "blocks": 768, "nbytes": 3 << 20}
    assert out.read_bytes() == media.read_bytes()[BLOCK : BLOCK + (3 << 20)]


def test_write_from_stdin_and_from_a_file(media: Path, tmp_path: Path) -> None:
    before = media.read_bytes()
    result = cli("write", uri(media), "-n", "1", "-s", "0x10", "-f", data=b"a" * BLOCK + b"b" * BLOCK)
    assert result.returncode == 0, result.stderr
    assert result.stderr == b"write: Success, 8192 bytes\n"
    source = tmp_path / "source"
    source.write_bytes(os.urandom((2 << 20) + 100))
    result = cli("write", uri(media), "--offset", "1MiB", "-d", str(source), "--pad")
    assert result.returncode == 0, result.stderr
    expected = bytearray(before)
    expected[16 * BLOCK : 18 * BLOCK] = b"a" * BLOCK + b"b" * BLOCK
    expected[1 << 20 : (3 << 20) + BLOCK] = source.read_bytes() + bytes(BLOCK - 100)
    assert media.read_bytes() == expected


def test_data_size_limits_the_bytes_taken_from_the_input(media: Path) -> None:
    result = cli("write", uri(media), "--length", "4k", data=b"x" * 3 * BLOCK)
    assert result.returncode == 0, result.stderr
    assert media.read_bytes()[: 2 * BLOCK] == b"x" * BLOCK + bytes([1]) * BLOCK
    result = cli("write", uri(media), "-c", "1", data=b"y" * BLOCK)
    assert result.returncode == 2
    assert b"4096 bytes too short" in result.stderr
    result = cli("write", uri(media), "-c", "1", "--pad", data=b"z")
    assert result.returncode == 0, result.stderr
    assert media.read_bytes()[: 2 * BLOCK] == b"z" + bytes(2 * BLOCK - 1)


def test_flush(media: Path) -> None:
    for arguments in ((), ("-n", "1"), ("-n", "0xffffffff")):
        result = cli("flush", uri(media), *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stderr == b"flush: Success\n"


def test_flush_of_several_devices_reaches_each(tmp_path: Path) -> None:
    with EmulatedController("size=4MiB,namespaces=2") as one, EmulatedController("size=4MiB") as two:
        names = []
        for number, target in enumerate((one, two)):
            target.listen(tmp_path / f"{number}.sock")
            names.append(f"vfio-user:{tmp_path}/{number}.sock")
        result = cli("flush", *names, "-n", "0xffffffff")
        assert (result.returncode, result.stderr) == (0, b"flush: Success\n")
        assert [target.faults.counters()["io"].get(0, 0) for target in (one, two)] == [2, 1]
        result = cli("flush", *names, "-n", "2")
        assert result.returncode == 1
        assert b"no active namespace 2 on " + names[1].encode() in result.stderr
        assert one.faults.counters()["io"][0] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("read", "-s", "1024"), 2, "blocks 1024 to 1024 were requested; namespace 1 has 1024"),
        (("read", "-c", "1024"), 2, "namespace 1 has 1024"),
        (("read", "--offset", "100"), 2, "100 bytes is not a multiple of the block size of 4096"),
        (("read", "--offset", "4k", "-s", "1"), 2, "exclude each other"),
        (("read", "--length", "4 parsecs"), 2, "is not a size"),
        (("read", "-s", "-1"), 2, "not a block number"),
        (("read", "-n", "0"), 2, "not a namespace id"),
        (("read", "-n", "7"), 1, "no active namespace 7"),
        (("read", "-o", "json"), 2, "give --data FILE"),
        (("write",), 2, "no data to transfer"),
        (("write", "-d", "/nonexistent/file"), 1, "No such file"),
    ],
)
def test_invalid_arguments_change_nothing_and_print_one_line(
    media: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = media.read_bytes()
    monkeypatch.setattr(sys, "argv", ["nvme-async", arguments[0], uri(media), *arguments[1:]])
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == code
    assert message in capfd.readouterr().err.splitlines()[-1]
    assert media.read_bytes() == before


def test_data_shorter_than_a_block_are_refused(media: Path) -> None:
    before = media.read_bytes()
    result = cli("write", uri(media), data=b"x" * 5000)
    assert result.returncode == 2
    assert b"--pad" in result.stderr
    assert media.read_bytes() == before


def test_a_missing_device_is_an_error(tmp_path: Path) -> None:
    result = cli("read", f"vfio-user:{tmp_path}/nobody.sock")
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1
    assert b"cannot connect" in result.stderr
