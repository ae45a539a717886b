"""Which logical blocks may be unreadable: Get LBA Status (NVM 4.2.1) and its log page (NVM
4.1.4).
"""

from __future__ import annotations

import struct

import attrs

from nvme_async.spec._layout import Buffer, Layout, uint

_NO_RANGES = 0xFFFF_FFFF


@attrs.frozen
class LbaStatusDescriptor(Layout, size=16):
    """LBA status descriptor (NVM 4.2.1)."""

    dslba: int = uint(0, 8)
    nlb: int = uint(8, 4)
    """Logical blocks, zero-based."""
    status: int = uint(13, 1)


@attrs.frozen
class LbaStatus:
    """The result of Get LBA Status (NVM 4.2.1).

    Attributes:
        nlsd: number of descriptors; more than in `descriptors` if the buffer was too small.
        cmpc: completion condition: 1 the buffer's end reached, 2 all blocks checked.
        descriptors: potentially unrecoverable blocks.
    """

    nlsd: int
    cmpc: int
    descriptors: tuple[LbaStatusDescriptor, ...]

    @classmethod
    def decode(cls, data: Buffer) -> LbaStatus:
        """From the command's buffer."""
        if len(data) < 8:
            raise ValueError(f"LBA status needs 8 bytes, not {len(data)}")
        page = bytes(data)
        nlsd = int.from_bytes(page[:4], "little")
        count = min(nlsd, (len(page) - 8) // 16)
        return cls(
            nlsd=nlsd,
            cmpc=page[4],
            descriptors=tuple(LbaStatusDescriptor.decode(page[at : at + 16]) for at in range(8, 8 + 16 * count, 16)),
        )


@attrs.frozen
class LbaRange:
    """LBA range descriptor (NVM 4.1.4). rnlb: logical blocks, zero-based."""

    rslba: int
    rnlb: int


@attrs.frozen
class LbaStatusElement:
    """LBA status log namespace element (NVM 4.1.4).

    Attributes:
        nsid: the namespace.
        action: 10h or 11h, for Get LBA Status.
        ranges: the ranges to check; None for the whole namespace.
    """

    nsid: int
    action: int
    ranges: tuple[LbaRange, ...] | None


@attrs.frozen
class LbaStatusLog:
    """LBA status information log page (LID 0Eh; NVM 4.1.4).

    Attributes:
        estulb: estimate of unrecoverable logical blocks.
        lsgc: generation counter of the page.
        elements: one per namespace.
    """

    estulb: int
    lsgc: int
    elements: tuple[LbaStatusElement, ...]

    @classmethod
    def decode(cls, data: Buffer) -> LbaStatusLog:
        """Raises ValueError if the page is truncated."""
        page = bytes(data)
        try:
            _length, count, estulb, lsgc = struct.unpack_from("<III2xH", page)
            elements = []
            at = 16
            for _ in range(count):
                nsid, nlrd, action = struct.unpack_from("<IIB7x", page, at)
                at += 16
                ranges = None
                if nlrd != _NO_RANGES:
                    ranges = tuple(
                        LbaRange(*struct.unpack_from("<QI4x", page, at + 16 * index)) for index in range(nlrd)
                    )
                    at += 16 * nlrd
                elements.append(LbaStatusElement(nsid, action, ranges))
        except struct.error as error:
            raise ValueError(f"LBA status log page extends beyond its {len(page)} bytes: {error}") from None
        return cls(estulb, lsgc, tuple(elements))
