"""What every command does when whoever reads its output has left, as `| head` does."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["bench", "--help"],
        ["id-ctrl", "emulated:size=1MiB", "-o", "json"],
        ["read", "emulated:size=1MiB", "-c", "255"],
        ["bench", "--filename=emulated:size=16MiB", "--name=x", "--rw=randread", "--bs=4k", "--number_ios=10"],
    ],
    ids=" ".join,
)
def test_the_reader_of_stdout_has_left(arguments):
    command = subprocess.Popen(
        [sys.executable, "-m", "nvme_async", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    command.stdout.close()
    errors = command.stderr.read()
    command.stderr.close()
    assert command.wait(60) == 1
    assert errors == b""
