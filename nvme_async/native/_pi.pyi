"""End-to-end protection information in C (NVM Command Set 1.1, 5.3): guards, generation, checks.

No state, any thread. The GIL is released for 16 KiB and more.
"""

from typing_extensions import Buffer, disjoint_base

CHECK_REF: int
CHECK_APP: int
CHECK_GUARD: int
CHECK_STORAGE: int

def crc16_t10(data: Buffer, crc: int = 0) -> int:
    """CRC-16 of T10 DIF, the 16-bit guard. `crc`: that of the preceding bytes."""

def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C, the 32-bit guard."""

def crc64_nvme(data: Buffer, crc: int = 0) -> int:
    """The 64-bit CRC of NVMe, the 64-bit guard."""

def use_instructions(on: bool) -> bool:
    """Sets whether the CPU's own instructions are used, for the whole process; returns the
    previous setting. For tests.
    """

@disjoint_base
class PiFormat:
    """How blocks are protected. ValueError for settings that the specification doesn't
    define.
    """

    pi_bytes: int
    tag_bits: int
    guard: int
    type: int

    def __init__(
        self,
        block_size: int,
        metadata: int,
        type: int,
        *,
        guard: int = 16,
        storage_tag_bits: int = 0,
        first: bool = False,
    ) -> None: ...
    def generate(
        self, data: Buffer, metadata: Buffer | None = None, *, ref_tag: int = 0, app_tag: int = 0, storage_tag: int = 0
    ) -> None:
        """Writes the protection information of whole blocks into `metadata`, or into `data` if
        that holds extended blocks. Both must be writable.
        """

    def check(
        self,
        data: Buffer,
        metadata: Buffer | None = None,
        *,
        ref_tag: int = 0,
        app_tag: int = 0,
        app_mask: int = 0xFFFF,
        storage_tag: int = 0,
        checks: int = 7,
    ) -> tuple[int, int, int, int] | None:
        """None if all are correct, otherwise (block, CHECK_*, found, expected) of the first
        wrong block.
        """

def interleave(data: Buffer, metadata: Buffer, out: Buffer, size: int, extra: int) -> None:
    """Extended blocks of `size` + `extra` bytes in `out` from separate data and metadata."""

def separate(blocks: Buffer, data: Buffer, metadata: Buffer, size: int, extra: int) -> None:
    """Separate data and metadata from extended blocks."""
