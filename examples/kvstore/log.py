"""A log of batches on one namespace: each is appended with one write and found by reading from
the start.

The namespace has a superblock and two areas. One area is in use; when it is full, the live data is
written to the other, and the superblock is switched. A batch is valid if its header, generation,
number and checksum are correct, so a torn write at the end is no batch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator

import attrs

from nvme_async import AsyncNamespace

# magic, version, area, generation, checksum of the fields before
_SUPER = struct.Struct("<8sIIQI")
_SUPER_MAGIC = b"KVSUPER1"
# magic, generation, number, bytes of the payload, checksum of payload and the fields before
_BATCH = struct.Struct("<4sQQII")
_BATCH_MAGIC = b"KVB1"
# bytes of key and value; the latter DELETED for a deletion
_RECORD = struct.Struct("<HI")
DELETED = 0xFFFF_FFFF
MAX_KEY, MAX_VALUE = 1024, 1 << 20
_CHUNK = 1 << 20


@attrs.frozen
class Place:
    """A value's place: byte offset on the namespace, and length. generation: that of its
    area.
    """

    offset: int
    nbytes: int
    generation: int


class LogFull(Exception):
    """The area has no room for the batch."""


class Log:
    """One append() at a time; reads at any time."""

    def __init__(self, namespace: AsyncNamespace) -> None:
        self._namespace = namespace
        self._block = namespace.block_size
        self._area_blocks = (namespace.blocks - 1) // 2
        self._area = 0
        self.generation = 0
        self._number = 0
        self._head = 0  # next free block of the area

    @property
    def free(self) -> int:
        """The free bytes in the area."""
        return (self._area_blocks - self._head) * self._block

    @property
    def capacity(self) -> int:
        return self._area_blocks * self._block

    def _first(self, area: int) -> int:
        return 1 + area * self._area_blocks

    async def open(self) -> AsyncIterator[tuple[bytes, Place | None]]:
        """(key, place) of every record from the oldest on, None for a deletion. A namespace without
        a log gets an empty one.
        """
        block = await self._namespace.read(0)
        magic, version, area, generation, checksum = _SUPER.unpack_from(block)
        if magic != _SUPER_MAGIC or checksum != zlib.crc32(block[: _SUPER.size - 4]):
            if block.strip(b"\0"):
                raise ValueError("the namespace holds something that is no log; erase its first block to make it one")
            await self._switch(0, 1)
            return
        if version != 1:
            raise ValueError(f"a log of version {version}, this is 1")
        self._area, self.generation = area, generation
        async for payload, offset in self._batches():
            for key, begin, length in _records(payload):
                yield key, None if length == DELETED else Place(offset + begin, length, self.generation)

    async def _batches(self) -> AsyncIterator[tuple[bytes, int]]:
        """(payload, its byte offset on the namespace)"""
        first = self._first(self._area)
        size = self._block
        ahead = b""  # the data read from self._head on
        while self._head < self._area_blocks:
            if len(ahead) < _BATCH.size:
                ahead = await self._read_ahead(self._head, size)
            magic, generation, number, nbytes, checksum = _BATCH.unpack_from(ahead)
            blocks = -(-(_BATCH.size + nbytes) // size)
            if (magic, generation, number) != (
                _BATCH_MAGIC,
                self.generation,
                self._number,
            ) or blocks > self._area_blocks - self._head:
                return
            if len(ahead) < blocks * size:
                ahead = await self._read_ahead(self._head, blocks * size)
            payload = ahead[_BATCH.size : _BATCH.size + nbytes]
            if zlib.crc32(payload, zlib.crc32(ahead[: _BATCH.size - 4])) != checksum:
                return
            yield payload, (first + self._head) * size + _BATCH.size
            ahead = ahead[blocks * size :]
            self._head += blocks
            self._number += 1

    async def _read_ahead(self, head: int, nbytes: int) -> bytes:
        blocks = min(max(nbytes, _CHUNK) // self._block, self._area_blocks - head)
        data: bytes = await self._namespace.read(self._first(self._area) + head, blocks)
        return data

    async def append(self, records: list[tuple[bytes, bytes | None]]) -> list[Place | None]:
        """Writes a batch of (key, value), None to delete, so that it is on the media when this
        returns. LogFull if there is no room.
        """
        payload = bytearray()
        places: list[tuple[int, int]] = []
        for key, value in records:
            payload += _RECORD.pack(len(key), DELETED if value is None else len(value)) + key
            places.append((len(payload), DELETED if value is None else len(value)))
            payload += value or b""
        header = _BATCH.pack(_BATCH_MAGIC, self.generation, self._number, len(payload), 0)[:-4]
        header += zlib.crc32(payload, zlib.crc32(header)).to_bytes(4, "little")
        blocks = -(-(len(header) + len(payload)) // self._block)
        if blocks > self._area_blocks - self._head:
            raise LogFull
        lba = self._first(self._area) + self._head
        await self._namespace.write(lba, (header + payload).ljust(blocks * self._block, b"\0"), fua=True)
        self._head += blocks
        self._number += 1
        offset = lba * self._block + len(header)
        return [
            None if length == DELETED else Place(offset + begin, length, self.generation) for begin, length in places
        ]

    async def read(self, place: Place) -> bytes:
        """The value at a place."""
        if place.nbytes == 0:
            return b""
        first = place.offset // self._block
        last = (place.offset + place.nbytes - 1) // self._block
        data: bytes = await self._namespace.read(first, last - first + 1)
        begin = place.offset - first * self._block
        return data[begin : begin + place.nbytes]

    def other_area(self) -> Log:
        """An empty log in the unused area, for the live data; call switch_to() afterwards."""
        other = Log(self._namespace)
        other._area, other.generation = 1 - self._area, self.generation + 1
        return other

    async def switch_to(self, other: Log) -> None:
        """From now on the log is `other`, also after a restart."""
        number, head = other._number, other._head
        await self._switch(other._area, other.generation)
        self._number, self._head = number, head

    async def _switch(self, area: int, generation: int) -> None:
        fields = _SUPER.pack(_SUPER_MAGIC, 1, area, generation, 0)[:-4]
        block = (fields + zlib.crc32(fields).to_bytes(4, "little")).ljust(self._block, b"\0")
        await self._namespace.write(0, block, fua=True)
        self._area, self.generation = area, generation
        self._number = self._head = 0


def _records(payload: bytes) -> list[tuple[bytes, int, int]]:
    """(key, offset of its value, length of its value) of each record."""
    records: list[tuple[bytes, int, int]] = []
    at = 0
    while at < len(payload):
        key_nbytes, length = _RECORD.unpack_from(payload, at)
        at += _RECORD.size
        key = payload[at : at + key_nbytes]
        at += key_nbytes
        records.append((key, at, length))
        at += 0 if length == DELETED else length
    return records
