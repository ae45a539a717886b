"""Golden bytes of what is passed between processes and releases: the manifest's header in the
pool, and the frame of a bundle. test_layout.py covers the queues' memory, test_pool.py the
pool's own tables.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct

from nvme_async.keepalive import manifest
from nvme_async.keepalive.bundle import Bundle, receive_bundle, send_bundle
from nvme_async.native._dma import Pool


def half(sequence: int, body: bytes) -> bytes:
    digest = hashlib.sha256(struct.pack("<QQ", sequence, len(body)) + body).digest()
    return b"NVMEMANI" + struct.pack("<IIQQ", 1, 0, sequence, len(body)) + digest + body


def test_a_manifest() -> None:
    """Two halves of one slot, 64 KiB each at first; the odd numbers in the second."""
    with Pool(1 << 20, iova=1 << 32, name="m", hugepages="never") as pool:
        writer = manifest.Manifest(pool)
        writer.write(b"one")
        writer.write(b"second")
        (slot,) = pool.slots()
        assert (slot.owner, slot.nbytes, slot.persistent) == ("manifest", 128 << 10, True)
        assert os.pread(pool.fd, 70, slot.offset) == half(2, b"second")
        assert os.pread(pool.fd, 67, slot.offset + (64 << 10)) == half(1, b"one")
    with Pool(1 << 20, iova=1 << 32, name="m", hugepages="never") as pool:
        buffer = pool.alloc(128 << 10, owner="manifest", persistent=True)
        os.pwrite(pool.fd, half(7, b"of another release"), buffer.offset + (64 << 10))
        assert manifest.find(pool)[1:] == (7, b"of another release")


def test_a_bundle() -> None:
    """A header, one byte with up to 200 descriptors, and the names in JSON."""
    body = b'{"uri": "vfio-user:/x", "manifest": "{}", "descriptors": ["pool", "irq.0"]}'
    golden = b"NVMEBNDL" + struct.pack("<IIQ", 1, 2, len(body)) + b"+" + body
    ours, theirs = socket.socketpair()
    fd = os.memfd_create("x")
    with ours, theirs:
        with Bundle.of("vfio-user:/x", b"{}", {"pool": fd, "irq.0": fd}) as bundle:
            send_bundle(ours, bundle)
        data, fds = b"", []
        while len(data) < len(golden):
            part, more, _, _ = socket.recv_fds(theirs, 4096, 8)
            data += part
            fds += more
        assert data == golden
        assert len(fds) == 2
        ours.sendall(golden[:24])
        socket.send_fds(ours, [golden[24:25]], fds)
        ours.sendall(golden[25:])
        with receive_bundle(theirs) as found:
            assert (found.uri, found.manifest, list(found.descriptors)) == ("vfio-user:/x", b"{}", ["pool", "irq.0"])
    for one in (fd, *fds):
        os.close(one)
