"""The controller's own memory, as clients of the vfio-user server map it one after the other."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest
from raw_vfio_user import RawClient

from nvme_async.emulator import EmulatedController

BAR2, SIZE = 2, 16384


def mapped(client: RawClient) -> mmap.mmap:
    info = client.region_info(BAR2)
    assert struct.unpack_from("<Q", info, 16)[0] == SIZE
    fd = client.received.pop()
    try:
        return mmap.mmap(fd, SIZE)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("options", "kept"), [("cmb=16KiB", False), ("pmr=16KiB", True), ("pmr=16KiB,file", True)])
def test_a_client_that_has_left_reaches_nothing_of_the_next(options: str, kept: bool, tmp_path: Path) -> None:
    file = options.endswith("file")
    options = options.replace("file", f"pmr_path={tmp_path / 'pmr'}")
    path = str(tmp_path / "c.sock")
    with EmulatedController(f"size=1MiB,{options}") as controller:
        controller.listen(path)
        with RawClient.dial(path) as client:
            old = mapped(client)
            old[100:105] = b"first"
        with RawClient.dial(path) as client:
            new = mapped(client)
            assert bytes(new[100:105]) == (b"first" if kept else bytes(5))
            old[100:105] = b"stale"
            if not file:  # a file is the same for all
                assert bytes(new[100:105]) == (b"first" if kept else bytes(5))
            new[200:204] = b"next"
            assert client.read(BAR2, 200, 4) == b"next"
        old.close()
        new.close()
