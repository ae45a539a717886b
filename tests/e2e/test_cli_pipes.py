"""Commands at the end of pipes: the reader of their output has left, as `| head` does; the other side never moves and
Ctrl-C must end them.
"""

import fcntl
import signal
import struct
import subprocess
import sys
import termios
import time

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


def unread(pipe: int) -> int:
    """Bytes in a pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["write", "emulated:size=16MiB"],
        ["write", "emulated:size=16MiB", "--length", "1MiB", "-o", "json"],
        ["read", "emulated:size=16MiB", "--length", "16MiB"],
    ],
    ids=" ".join,
)
def test_ctrl_c_ends_what_waits_for_a_pipe(arguments):
    command = subprocess.Popen(
        [sys.executable, "-m", "nvme_async", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A test run in the background may itself ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with command:
        if arguments[0] == "read":
            assert command.stdout.read(4096) == bytes(4096)  # it writes; from here on nothing is read
        else:
            command.stdin.write(bytes(4096))
            command.stdin.flush()
            while unread(command.stdin.fileno()):  # once it has been read, the loop runs and wants more
                time.sleep(0.05)
        time.sleep(0.3)
        assert command.poll() is None
        command.send_signal(signal.SIGINT)
        assert command.wait(10) == 130
        assert command.stderr.read() == b"\n"  # behind the terminal's ^C
