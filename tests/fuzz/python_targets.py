"""Fuzz targets in Python: each takes bytes that a controller, a peer, a predecessor or a user
gives, and may raise what it documents, nothing else.

    python tests/fuzz/python_targets.py TARGET [atheris' arguments]
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:  # replaying seeds needs none
    atheris = None

from contextlib import ExitStack

with atheris.instrument_imports(include=["nvme_async"]) if atheris and __name__ == "__main__" else ExitStack():
    from nvme_async.device import vfio_user_explore, vfio_user_protocol
    from nvme_async.dma import Pool
    from nvme_async.driver.tcp import pdu
    from nvme_async.driver.tcp.address import Address
    from nvme_async.errors import NvmeError
    from nvme_async.fio import commandline, jobfile, options
    from nvme_async.keepalive import manifest, state
    from nvme_async.sharing import protocol
    from nvme_async.spec import features, identify, lba_status, logs, persistent, zns

DATA = Path(__file__).resolve().parents[1] / "data"
DOCUMENTED = (NvmeError, ValueError)


def classes(*modules: Any) -> list[Any]:
    """Everything in the modules that is decoded from a page."""
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return sorted(
        (one for one in found if hasattr(one, "decode") and one.__name__ != "Layout"), key=lambda one: one.__name__
    )


def decoders(*modules: Any) -> list[Callable[[bytes], Any]]:
    """The modules' functions that decode a list."""
    names = sorted(
        {(name, module) for module in modules for name in vars(module) if name.startswith("decode_")}, key=str
    )
    return [getattr(module, name) for name, module in names]


PAGES = [one.decode for one in classes(identify, logs, zns, features, lba_status, persistent)] + decoders(
    identify, logs, features
)


def pages(data: bytes) -> None:
    """Identify, log and feature pages: the first byte says which."""
    if not data:
        return
    decode = PAGES[data[0] % len(PAGES)]
    size = getattr(getattr(decode, "__self__", None), "SIZE", 0) or len(data) - 1
    page = data[1:].ljust(size, b"\0")
    repr(decode(page[:size]))


def saved_state(data: bytes) -> None:
    decoded = state.decode(data)
    assert state.decode(state.encode(decoded)) == decoded


def kept_manifest(data: bytes) -> None:
    """A pool with a manifest, and changes to it: records of an offset (32 bits) and 8 bytes."""
    with Pool(1 << 20, iova=1 << 32, name="m", hugepages="never") as pool:
        kept = manifest.Manifest(pool)
        for body in (b"first", b"second " * 100):
            kept.write(body)
        mapped = os.dup(pool.fd)
        try:
            for at in range(0, len(data) - 11, 12):
                offset = struct.unpack_from("<I", data, at)[0] % ((1 << 20) - 8)
                os.pwrite(mapped, data[at + 4 : at + 12], offset)
        finally:
            os.close(mapped)
        with Pool.attach(pool.fd) as successor:
            manifest.find(successor)


def jobs(data: bytes) -> None:
    """A fio job file."""
    if b"include" in data or b"\0" in data:  # files of this machine are not part of the input
        return
    with tempfile.NamedTemporaryFile(suffix=".fio") as file:
        file.write(data)
        file.flush()
        for _, texts in jobfile.read_sections(file.name):
            options.resolve({"filename": "emulated:size=1GiB", **texts})


def arguments(data: bytes) -> None:
    """fio's command line, a word a line."""
    words = [word for word in data.decode(errors="replace").split("\n") if word.startswith("--")]
    if words:
        commandline.parse_arguments(words)


def shared_message(data: bytes) -> None:
    message = protocol.decode(data)
    if message.kind:
        protocol.Grant.of(message)


def vfio_user(data: bytes) -> None:
    """Answers of a vfio-user server."""
    if not data:
        return
    kind, payload = data[0] % 5, data[1:]
    if kind == 0:
        vfio_user_protocol.parse_version(payload)
    elif kind == 1:
        vfio_user_protocol.parse_region(payload, data[0] >> 4)
    elif kind == 2:
        vfio_user_protocol.doorbell_ioeventfd(payload, 0x1000)
    elif kind == 3:
        vfio_user_explore.read_answers([payload], [(0, 0x1000, 4)])
    else:
        saved = json.loads(payload)
        if isinstance(saved, dict):
            vfio_user_explore.layout_from(saved)


def tcp_address(data: bytes) -> None:
    Address.parse(data.decode(errors="replace"))


class _Wire(pdu.Stream):
    """What a controller sends during the handshake."""

    def __init__(self, data: bytes) -> None:
        self.data, self.name = data, "fuzz"

    async def _exactly(self, nbytes: int) -> bytes:
        if len(self.data) < nbytes:
            raise EOFError
        part, self.data = self.data[:nbytes], self.data[nbytes:]
        return part


def tcp_handshake(data: bytes) -> None:
    """PDUs before the native link takes over; the first byte says which digests are in use."""
    if not data:
        return
    receiving = _Wire(data[1:]).receive(header_digest=bool(data[0] & 1), data_digest=bool(data[0] & 2))
    try:
        receiving.send(None)
    except (StopIteration, EOFError):
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "pages": pages,
    "saved_state": saved_state,
    "manifest": kept_manifest,
    "jobs": jobs,
    "arguments": arguments,
    "sharing": shared_message,
    "vfio_user": vfio_user,
    "tcp_address": tcp_address,
    "tcp_handshake": tcp_handshake,
}


def seeds(target: str) -> list[bytes]:
    """Inputs that a target begins with."""
    region = (
        struct.pack("<IIIIQQ", 64, 7, 0, 32, 16384, 0)
        + struct.pack("<HHIII", 1, 1, 0, 1, 0)
        + struct.pack("<QQ", 4096, 4096)
    )
    version = b'\0\0\1\0{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}\0'
    found: dict[str, list[bytes]] = {
        "pages": [
            bytes([index]) + page for index in range(len(PAGES)) for page in (b"", bytes(230), bytes(range(256)) * 2)
        ],
        "saved_state": [path.read_bytes() for path in sorted(DATA.glob("keepalive-state-*.json"))],
        "manifest": [b"", struct.pack("<IQ", 4096, 1), struct.pack("<IQ", 20480, ~0 % 2**64)],
        "jobs": [path.read_bytes() for path in sorted(DATA.glob("*.fio"))]
        + [b"[j]\nrw=randrw\nbs=4k,8k\nsize=1g\nrwmixread=30\n"],
        "arguments": [b"--name=j\n--rw=randread\n--bs=4k\n--iodepth=4\n--runtime=1s\n--filename=a:b"],
        "sharing": [
            protocol.encode("hello", {"version": 1}),
            protocol.encode("grant", {"qid": 1, "entries": 64}, data=b"x"),
        ],
        "vfio_user": [
            b"\0" + version,
            b"\x01" + region,
            b"\x02" + struct.pack("<IIIIQQ", 48, 0, 0, 1, 0, 0),
            b"\x04{}",
        ],
        "tcp_address": [b"10.0.0.1:4420/nqn.2014-08.org.nvmexpress:uuid:1?hdgst=on", b"[::1]/nqn.x:y"],
        "tcp_handshake": [
            b"\0" + struct.pack("<BBBBIHBBI", 1, 0, 128, 0, 128, 0, 0, 3, 8192) + bytes(112),
            b"\1" + struct.pack("<BBBBIIIHHHH", 5, 1, 24, 0, 28, 0, 0, 1, 0, 1, 0) + bytes(4),
        ],
    }
    return found[target]


def once(target: str, data: bytes) -> None:
    """Runs a target. What it documents is no finding."""
    try:
        TARGETS[target](data)
    except DOCUMENTED:
        pass


def main() -> None:
    target = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: once(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
