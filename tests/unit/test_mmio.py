"""Register windows: width, bounds, lifetime."""

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvme_async.native._mmio import Mmio


@pytest.fixture
def page() -> Iterator[int]:
    fd = os.memfd_create("page")
    os.truncate(fd, 0x2000)
    yield fd
    os.close(fd)


def test_accesses_reach_the_file(page: int) -> None:
    with Mmio(page, 0x1000, 0x1000) as window:
        window.write32(0, 0x11223344)
        window.write64(0xFF8, 0x8899AABBCCDDEEFF)
        assert os.pread(page, 4, 0x1000) == struct.pack("<I", 0x11223344)
        assert os.pread(page, 8, 0x1FF8) == struct.pack("<Q", 0x8899AABBCCDDEEFF)
        os.pwrite(page, struct.pack("<Q", 1 << 40 | 7), 0x1008)
        assert window.read64(8) == 1 << 40 | 7
        assert window.read32(8) == 7
        assert window.read32(12) == 1 << 8


def test_a_window_outlives_its_descriptor(page: int) -> None:
    duplicate = os.dup(page)
    window = Mmio(duplicate, 0, 0x1000)
    os.close(duplicate)
    window.write32(16, 5)
    assert os.pread(page, 4, 16) == b"\5\0\0\0"
    window.close()


@pytest.mark.parametrize("offset", [-4, 0x1000, 0xFFD, 2, 1 << 40])
def test_bounds_and_alignment(page: int, offset: int) -> None:
    window = Mmio(page, 0, 0x1000)
    with pytest.raises(ValueError, match=r"outside|not aligned"):
        window.read32(offset)
    with pytest.raises(ValueError, match=r"outside|not aligned"):
        window.write32(offset, 0)


def test_64_bit_access_must_fit(page: int) -> None:
    window = Mmio(page, 0, 0x1000)
    with pytest.raises(ValueError, match="outside"):
        window.read64(0xFFC)
    with pytest.raises(ValueError, match="not aligned"):
        window.write64(4, 0)


def test_value_must_fit(page: int) -> None:
    window = Mmio(page, 0, 0x1000)
    with pytest.raises(OverflowError):
        window.write32(0, 1 << 32)
    with pytest.raises(OverflowError):
        window.write32(0, -1)


def test_a_closed_window_refuses_accesses(page: int) -> None:
    window = Mmio(page, 0, 0x1000)
    assert not window.closed
    window.close()
    window.close()
    assert window.closed
    with pytest.raises(ValueError, match="closed"):
        window.read32(0)


def test_a_read_only_window_refuses_writes(page: int) -> None:
    window = Mmio(page, 0, 0x1000, writable=False)
    assert window.read32(0) == 0
    with pytest.raises(ValueError, match="read-only"):
        window.write32(0, 1)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 0), (0, -1), (8, 8), (-4096, 4096), (0x1000, 0x2000), (0, 1 << 47)])
def test_bad_windows(page: int, offset: int, nbytes: int) -> None:
    with pytest.raises(ValueError, match="window"):
        Mmio(page, offset, nbytes)


def test_bad_descriptor() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mmio(-1, 0, 4096)


EXT = Path(__file__).parents[2] / "ext"
COMPILER = shutil.which("cc")


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
@pytest.mark.parametrize("width", [32, 64])
def test_order_on_aarch64(width: int) -> None:
    """A store follows a barrier, for what the device will read is in memory by then; a load is
    followed by one. The compiler is made to believe in the other architecture: inline assembly
    is but text to it.
    """
    program = f"""
    #include "common/mmio.h"
    void store(void *at, uint{width}_t value) {{ mmio_store{width}(at, value); }}
    uint{width}_t load(void *at) {{ return mmio_load{width}(at); }}
    """
    command = [
        str(COMPILER),
        "-ffreestanding",
        "-O2",
        "-S",
        "-o",
        "-",
        "-U__x86_64__",
        "-D__aarch64__",
        f"-I{EXT}",
        "-xc",
        "-",
    ]
    assembly = subprocess.run(command, input=program, capture_output=True, text=True, check=True).stdout
    functions = {
        name: [line.strip() for line in body.splitlines() if re.match(r"\s+(dmb|mov|ldr|str)", line)]
        for name, body in re.findall(r"^(store|load):\n(.*?)\tret\n", assembly, re.M | re.S)
    }
    barrier, access = functions["store"]
    assert (barrier, access[:3]) == ("dmb oshst", "mov"), assembly
    access, barrier = functions["load"]
    assert (access[:3], barrier) == ("mov", "dmb oshld"), assembly


def test_no_other_store_to_registers() -> None:
    """Doorbells, their shadows and registers are stored to by common/mmio.h alone; what
    nvq_reset() clears no controller reads.
    """
    stores = [
        f"{path.name}: {line.strip()}"
        for path in EXT.rglob("*.[hcp]*")
        if not path.is_relative_to(EXT / "emulator") and path.suffix in {".h", ".c", ".pxi", ".pyx"}
        for line in path.read_text().splitlines()
        if re.search(r"\*\s*(\w+(->|\.))*(\w*doorbell|\w*shadow|mmio\w*)\b( = |\[)", line)
    ]
    assert [store.split()[-1] for store in stores] == ["0;"], stores
