"""The key value command set (KV 1.1): builders of its commands, identify data, lists of keys."""

from __future__ import annotations

from enum import IntEnum

import attrs

from nvme_async.spec._command import U32, Command, check
from nvme_async.spec._layout import Buffer, Layout, structs, uint

MAX_KEY = 16


class KvOpcode(IntEnum):
    """I/O commands of the key value command set."""

    STORE = 0x01
    RETRIEVE = 0x02
    LIST = 0x06
    DELETE = 0x10
    EXIST = 0x14


@attrs.frozen
class KvFormat(Layout, size=16):
    """KV format: limits of keys and values, 0 for none."""

    kml: int = uint(0, 2)
    """Longest key in bytes."""
    fopt: int = uint(3, 1)
    vml: int = uint(4, 4)
    """Longest value in bytes."""
    mnk: int = uint(8, 4)
    """Most keys."""


@attrs.frozen
class IdentifyNamespaceKv(Layout, size=4096):
    """Identify Namespace of the key value command set (CNS 05h, CSI 01h)."""

    nsze: int = uint(0, 8)
    """Its size in bytes."""
    nuse: int = uint(16, 8)
    nsfeat: int = uint(24, 1)
    nkvf: int = uint(25, 1)
    nmic: int = uint(26, 1)
    rescap: int = uint(27, 1)
    fpi: int = uint(28, 1)
    kvfs: tuple[KvFormat, ...] = structs(72, KvFormat, 16)


def _command(opcode: int, nsid: int, key: bytes, cdw10: int = 0, options: int = 0, *, data: int | None = 0) -> Command:
    if len(key) > MAX_KEY:
        raise ValueError(f"a key of {len(key)} bytes; the limit is {MAX_KEY}")
    words = [int.from_bytes(key.ljust(MAX_KEY, b"\0")[at : at + 4], "little") for at in range(0, MAX_KEY, 4)]
    return Command(
        opcode=opcode,
        nsid=check("nsid", nsid, 1, U32 - 1),
        cdw2=words[0],
        cdw3=words[1],
        cdw10=check("length", cdw10, 0, U32),
        cdw11=len(key) | options << 8,
        cdw14=words[2],
        cdw15=words[3],
        data_length=data,
    )


def store(nsid: int, key: bytes, nbytes: int, *, must_exist: bool = False, must_not_exist: bool = False) -> Command:
    """Store `nbytes` under `key`."""
    return _command(KvOpcode.STORE, nsid, key, nbytes, must_exist | must_not_exist << 1, data=nbytes)


def retrieve(nsid: int, key: bytes, nbytes: int) -> Command:
    """Up to `nbytes` of the value; completion dword 0 says how long it is."""
    return _command(KvOpcode.RETRIEVE, nsid, key, nbytes, data=nbytes)


def delete(nsid: int, key: bytes) -> Command:
    """Delete a key and its value."""
    return _command(KvOpcode.DELETE, nsid, key)


def exist(nsid: int, key: bytes) -> Command:
    """Succeeds if there is such a key."""
    return _command(KvOpcode.EXIST, nsid, key)


def list_keys(nsid: int, start: bytes, nbytes: int) -> Command:
    """Keys from `start` on, as many as fit `nbytes`; see decode_keys()."""
    return _command(KvOpcode.LIST, nsid, start, nbytes, data=nbytes)


def decode_keys(data: Buffer) -> tuple[bytes, ...]:
    """From the buffer of List. ValueError if it is truncated."""
    page = bytes(data)
    count = int.from_bytes(page[:4], "little")
    keys, at = [], 4
    for index in range(count):
        length = int.from_bytes(page[at : at + 2], "little")
        if length > MAX_KEY or at + 2 + length > len(page):
            raise ValueError(f"key {index} of {count} extends beyond the list's {len(page)} bytes")
        keys.append(page[at + 2 : at + 2 + length])
        at += (2 + length + 3) & ~3
    return tuple(keys)
