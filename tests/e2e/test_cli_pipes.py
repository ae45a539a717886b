"""Commands with pipes: the reader of their output has closed it, as `| head` does, or the other
side never moves and Ctrl-C must end them.
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
def test_a_closed_stdout_pipe_ends_quietly(arguments):
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
def test_ctrl_c_ends_a_command_that_waits_for_a_pipe(arguments):
    command = subprocess.Popen(
        [sys.executable, "-m", "nvme_async", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A test run in the background may ignore SIGINT, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with command:
        if arguments[0] == "read":
            assert command.stdout.read(4096) == bytes(4096)  # it has started to write; from here on nothing is read
        else:
            command.stdin.write(bytes(4096))
            command.stdin.flush()
            while unread(command.stdin.fileno()):  # once this has been read, the loop runs and waits for more
                time.sleep(0.05)
        time.sleep(0.1)
        assert command.poll() is None
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 130
        assert command.stderr.read() == b"\n"  # after the terminal's ^C
