"""TCG Storage level 0 discovery (TCG Storage Architecture Core Specification 2.01, 3.3.6), from
Security Receive with SECP 01h and SPSP 0001h. Numbers are big-endian.
"""

from __future__ import annotations

import struct

import attrs

from nvme_async.spec._layout import Buffer

FEATURES = {
    0x0001: "TPer",
    0x0002: "Locking",
    0x0003: "Geometry",
    0x0100: "Enterprise SSC",
    0x0200: "Opal SSC V1",
    0x0201: "Single User Mode",
    0x0202: "DataStore Table",
    0x0203: "Opal SSC V2",
    0x0302: "Opalite SSC",
    0x0303: "Pyrite SSC V1",
    0x0304: "Ruby SSC",
    0x0305: "Pyrite SSC V2",
    0x0402: "Block SID Authentication",
    0x0403: "Configurable Namespace Locking",
}
_LOCKING = 0x0002


@attrs.frozen
class SecurityFeature:
    """A feature descriptor: its code, version and what follows the four bytes of its header."""

    code: int
    version: int
    data: bytes

    @property
    def name(self) -> str:
        """As the TCG's documents call it, or its number."""
        return FEATURES.get(self.code, f"feature {self.code:#06x}")


@attrs.frozen
class Discovery0:
    """What the drive says of itself.

    Attributes:
        revision: of the data structure.
        features: descriptors, in their order.
    """

    revision: int
    features: tuple[SecurityFeature, ...]

    @classmethod
    def decode(cls, data: Buffer) -> Discovery0:
        """ValueError if a descriptor goes beyond what the header says, or the buffer holds."""
        page = bytes(data)
        if len(page) < 48:
            raise ValueError(f"level 0 discovery needs 48 bytes, not {len(page)}")
        length, revision = struct.unpack_from(">II", page)
        end = length + 4
        if end > len(page):
            raise ValueError(f"level 0 discovery has {end} bytes, but the buffer has {len(page)}")
        features = []
        at = 48
        while at + 4 <= end:
            code, version, size = struct.unpack_from(">HBB", page, at)
            if at + 4 + size > end:
                raise ValueError(f"feature {code:#06x} extends beyond the data's {end} bytes")
            features.append(SecurityFeature(code, version >> 4, page[at + 4 : at + 4 + size]))
            at += 4 + size
        return cls(revision, tuple(features))

    def feature(self, code: int) -> SecurityFeature | None:
        """The descriptor with that code."""
        return next((feature for feature in self.features if feature.code == code), None)

    def _locking(self, bit: int) -> bool:
        feature = self.feature(_LOCKING)
        return feature is not None and bool(feature.data) and bool(feature.data[0] >> bit & 1)

    @property
    def locking_enabled(self) -> bool:
        """Ownership has been taken."""
        return self._locking(1)

    @property
    def locked(self) -> bool:
        """Some range of the drive is locked."""
        return self._locking(2)
