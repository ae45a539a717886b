"""The keeper's process: its socket, its signals, its log on standard error. Standard library
only.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import stat
import sys

from .server import Keeper

log: logging.Logger = logging.getLogger("keeper")


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, for this user only. A socket file without a listener is
    replaced; OSError for anything else there.
    """
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "exists and is not a socket", path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            except OSError as error:
                raise OSError(errno.EADDRINUSE, f"is in use ({error.strerror})", path) from None
            else:
                raise OSError(errno.EADDRINUSE, "another keeper listens there", path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # It appears under its name only when it is ready, so that no client is refused, or considers it
    # stale, in between.
    preliminary = f"{path}.{os.getpid()}"
    try:
        listening.bind(preliminary)
        try:
            os.chmod(preliminary, 0o600)
            listening.listen(64)
            os.rename(preliminary, path)
        except BaseException:
            os.unlink(preliminary)
            raise
    except BaseException:
        listening.close()
        raise
    return listening


def main(arguments: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT. Returns 1 if the socket can't be opened."""
    parser = argparse.ArgumentParser(
        prog="keeper", description="Hold the descriptors of NVMe controllers for their drivers."
    )
    parser.add_argument("--socket", required=True, metavar="PATH")
    parser.add_argument("--quiet", action="store_true", help="warnings and errors only")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO, format="keeper: %(message)s", stream=sys.stderr
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        listening = listen(options.socket)
    except OSError as error:
        log.error("%s: %s", options.socket, error.strerror or error)
        return 1
    bound = os.stat(options.socket)
    keeper = Keeper(listening)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: keeper.stop())
    log.info("ready on %s", options.socket)
    try:
        keeper.run()
    finally:
        with contextlib.suppress(OSError):
            found = os.lstat(options.socket)
            if (found.st_dev, found.st_ino) == (bound.st_dev, bound.st_ino):
                os.unlink(options.socket)
    return 0
