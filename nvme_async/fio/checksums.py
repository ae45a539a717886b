"""The checksums of verify=: each takes the bytes after the header and returns their digest."""

from __future__ import annotations

import binascii
import hashlib
import struct
import zlib
from collections.abc import Callable

from nvme_async.native._fio import crc7, crc32c, crc64, xxh64

_SHORT, _WORD, _LONG = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")

# The order is that of the numbers in headers on media: append new ones.
CHECKSUMS: dict[str, Callable[[memoryview], bytes]] = (
    {
        "crc32c": lambda data: _WORD.pack(crc32c(data)),
        "crc32": lambda data: _WORD.pack(zlib.crc32(data)),
        "xxhash": lambda data: _LONG.pack(xxh64(data)),
    }
    | {
        name: (lambda data, name=name: hashlib.new(name, data, usedforsecurity=False).digest())
        for name in ("md5", "sha1", "sha256", "sha512", "sha3-224", "sha3-256", "sha3-384", "sha3-512")
    }
    | {
        "crc64": lambda data: _LONG.pack(crc64(data)),
        "crc16": lambda data: _SHORT.pack(binascii.crc_hqx(data, 0xFFFF)),
        "crc7": lambda data: bytes([crc7(data)]),
    }
)
KINDS = {name: number for number, name in enumerate([*CHECKSUMS, "meta", "pattern_hdr"], 1)}
DIGEST_SIZES = {name: len(function(memoryview(b""))) for name, function in CHECKSUMS.items()}
