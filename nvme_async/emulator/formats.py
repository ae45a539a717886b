"""LBA formats of an emulated controller, from which Format NVM can choose."""

from __future__ import annotations

import re

import attrs

from nvme_async.emulator.parsing import in_range, one_of
from nvme_async.errors import ConfigurationError

BLOCK_SIZES = (512, 4096)
GUARDS = (16, 32, 64)
MAX_FORMATS = 16
MAX_METADATA = 128
_FORMAT = re.compile(r"(\d+)(?:\+(\d+)(?:g(\d+))?(?:s(\d+))?)?")
_MAX_STORAGE_TAG = {16: 32, 32: 64, 64: 48}


@attrs.frozen
class LbaFormat:
    """An LBA format (NVM Command Set 1.1, 4.1.5.1 and 4.1.5.3).

    Attributes:
        block_size: bytes of data, 512 or 4096.
        metadata: bytes of metadata, 0 to 128.
        guard: bits of the guard of protection information: 16, 32 or 64.
        storage_tag_bits: bits of the reference tag that are a storage tag.
    """

    block_size: int = attrs.field(validator=one_of(*BLOCK_SIZES))
    metadata: int = attrs.field(default=0, validator=in_range(0, MAX_METADATA))
    guard: int = attrs.field(default=16, validator=one_of(*GUARDS))
    storage_tag_bits: int = attrs.field(default=0)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.storage_tag_bits <= _MAX_STORAGE_TAG[self.guard]:
            raise ConfigurationError(
                f"a storage tag of {self.storage_tag_bits} bits: a guard of {self.guard} bits leaves room for 0 to "
                f"{_MAX_STORAGE_TAG[self.guard]}"
            )
        if self.guard != 16 and self.metadata < self.pi_bytes:
            raise ConfigurationError(f"{self}: a guard of {self.guard} bits needs {self.pi_bytes} bytes of metadata")

    @property
    def pif(self) -> int:
        """Protection Information Format, as in the Extended LBA Format."""
        return GUARDS.index(self.guard)

    @property
    def pi_bytes(self) -> int:
        """The bytes that protection information takes."""
        return 8 if self.guard == 16 else 16

    def same_blocks(self, other: LbaFormat) -> bool:
        """Whether both are the same except for the storage tag."""
        return attrs.evolve(self, storage_tag_bits=0) == attrs.evolve(other, storage_tag_bits=0)

    def __str__(self) -> str:
        text = str(self.block_size)
        if self.metadata:
            text += f"+{self.metadata}"
        if self.guard != 16:
            text += f"g{self.guard}"
        if self.storage_tag_bits:
            text += f"s{self.storage_tag_bits}"
        return text


def format_names(formats: tuple[LbaFormat, ...]) -> str:
    return "/".join(map(str, formats))


def parse_formats(text: str | tuple[LbaFormat, ...], name: str = "formats") -> tuple[LbaFormat, ...]:
    """From "512/4096/512+8/4096+16g64s16": bytes of data, of metadata, bits of the guard, of the
    storage tag.
    """
    if not isinstance(text, str):
        return tuple(text)
    formats = []
    for part in text.split("/"):
        match = _FORMAT.fullmatch(part)
        if match is None:
            raise ConfigurationError(
                f"{name}={text!r}: {part!r} is not an LBA format; examples are 4096, 4096+8 and 4096+16g64"
            )
        block, metadata, guard, storage = (int(group) if group else None for group in match.groups())
        assert block is not None
        formats.append(LbaFormat(block, metadata or 0, guard or 16, storage or 0))
    if len(formats) > MAX_FORMATS:
        raise ConfigurationError(f"{name}={text!r} has {len(formats)} LBA formats: at most {MAX_FORMATS}")
    if len(set(formats)) != len(formats):
        raise ConfigurationError(f"{name}={text!r} names an LBA format twice")
    return tuple(formats)
