"""Directives (Base 2.1, 8.1.8): what Directive Receive returns.

Identify  DirectiveParameters      Streams  StreamParameters, decode_streams_status
"""

from __future__ import annotations

import struct

import attrs

from nvme_async.spec._layout import Buffer, Layout, raw, uint


def _types(bitmap: bytes) -> frozenset[int]:
    value = int.from_bytes(bitmap, "little")
    return frozenset(number for number in range(256) if value >> number & 1)


@attrs.frozen
class DirectiveParameters(Layout, size=4096):
    """Return Parameters of the Identify directive (Base 2.1, 8.1.8.2.1): bitmaps by directive
    type.
    """

    ds: bytes = raw(0, 32)
    de: bytes = raw(32, 32)
    dpac: bytes = raw(64, 32)

    @property
    def supported(self) -> frozenset[int]:
        """Directive types that are supported, see opcodes.DirectiveType."""
        return _types(self.ds)

    @property
    def enabled(self) -> frozenset[int]:
        """Directive types that are enabled for the namespace."""
        return _types(self.de)

    @property
    def persistent(self) -> frozenset[int]:
        """Directive types that stay enabled across a Controller Level Reset."""
        return _types(self.dpac)


@attrs.frozen
class StreamParameters(Layout, size=32):
    """Return Parameters of the Streams directive (Base 2.1, 8.1.8.3.1.1). The first five are the
    NVM subsystem's, the others the namespace's.
    """

    msl: int = uint(0, 2)
    """Max streams limit."""
    nssa: int = uint(2, 2)
    """Streams available in the subsystem."""
    nsso: int = uint(4, 2)
    """Streams open in the subsystem."""
    nssc: int = uint(6, 1)
    """Capabilities; bit 0: identifiers are shared by hosts."""
    sws: int = uint(16, 4)
    """Stream write size, in logical blocks."""
    sgs: int = uint(20, 2)
    """Stream granularity size, in stream write sizes."""
    nsa: int = uint(22, 2)
    """Streams allocated to the namespace for this host."""
    nso: int = uint(24, 2)
    """Streams that this host has open in the namespace."""


def decode_streams_status(data: Buffer) -> tuple[int, ...]:
    """Get Status of the Streams directive (Base 2.1, 8.1.8.3.1.2): the open streams, as far as
    `data` has them. ValueError for less than 2 bytes.
    """
    page = bytes(data)
    if len(page) < 2:
        raise ValueError(f"the status of streams needs 2 bytes at least, not {len(page)}")
    count = min(int.from_bytes(page[:2], "little"), len(page) // 2 - 1)
    return struct.unpack_from(f"<{count}H", page, 2)
