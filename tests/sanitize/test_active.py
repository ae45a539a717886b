"""The sanitizers are active: an invalid access by a module of ext/ ends the process with a
report.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("_dma", "_mmio", "_hotpath", "_emulator", "_fio")


def origin(module: str) -> Path:
    spec = find_spec(f"nvme_async.native.{module}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_instrumented_and_not_the_ordinary_build(module: str) -> None:
    path = origin(module)
    assert path.parent != ROOT / "nvme_async" / "native"
    text = path.read_bytes()
    assert b"__asan_init" in text
    assert b"__asan_report_" in text
    assert b"__ubsan_handle_" in text


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )


# A view that claims more bytes than exist: the module that uses it can't notice.
OVERFLOW = """
    import ctypes
    from nvme_async.native import _fio
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    view = ctypes.pythonapi.PyMemoryView_FromMemory
    view.restype, view.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
    promised = view(libc.malloc(64), 64 + {beyond}, 0x100)
    _fio.crc32c(promised, software=True)
    print("survived")
"""


def test_an_overflow_is_caught() -> None:
    result = run(OVERFLOW.format(beyond=8))
    assert result.returncode == 99
    assert "survived" not in result.stdout
    assert "heap-buffer-overflow" in result.stderr
    assert "crc32c" in result.stderr, "the report names where it was"


def test_valid_accesses_pass() -> None:
    result = run(OVERFLOW.format(beyond=0))
    assert (result.returncode, result.stdout, result.stderr) == (0, "survived\n", "")


def test_objects_have_separate_memory() -> None:
    """So have Python's: a view past the end of bytes is detected."""
    result = run("""
        import ctypes
        from nvme_async.native import _fio
        data = bytes(100)
        view = ctypes.pythonapi.PyMemoryView_FromMemory
        view.restype, view.argtypes = ctypes.py_object, [ctypes.c_char_p, ctypes.c_ssize_t, ctypes.c_int]
        _fio.crc32c(view(data, 200, 0x100), software=True)
    """)
    assert result.returncode == 99
    assert "heap-buffer-overflow" in result.stderr
