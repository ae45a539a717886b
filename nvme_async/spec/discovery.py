"""The discovery log page, 70h (Base 2.0, 5.16.1.23): which subsystems and other discovery
services there are.
"""

from __future__ import annotations

import struct

import attrs

LID = 0x70
ENTRY_BYTES = 1024
TRANSPORTS = {1: "rdma", 2: "fc", 3: "tcp", 254: "loop"}
FAMILIES = {1: "ipv4", 2: "ipv6", 3: "ib", 4: "fc", 254: "loop"}
SUBSYSTEMS = {1: "referral", 2: "nvme subsystem", 3: "current discovery subsystem"}
REFERRAL, NVME, CURRENT = 1, 2, 3


@attrs.frozen(kw_only=True)
class DiscoveryEntry:
    """One entry, with the specification's field names."""

    trtype: int
    adrfam: int
    subtype: int
    treq: int
    portid: int
    cntlid: int
    asqsz: int
    eflags: int
    trsvcid: str
    subnqn: str
    traddr: str
    sectype: int
    """TSAS of TCP: 0 none, 1 TLS 1.2, 2 TLS 1.3."""

    @classmethod
    def decode(cls, data: bytes) -> DiscoveryEntry:
        if len(data) != ENTRY_BYTES:
            raise ValueError(f"an entry of the discovery log has {ENTRY_BYTES} bytes, not {len(data)}")
        trtype, adrfam, subtype, treq, portid, cntlid, asqsz, eflags = struct.unpack_from("<BBBBHHHH", data)
        return cls(
            trtype=trtype,
            adrfam=adrfam,
            subtype=subtype,
            treq=treq,
            portid=portid,
            cntlid=cntlid,
            asqsz=asqsz,
            eflags=eflags,
            trsvcid=_text(data[32:64]),
            subnqn=_text(data[256:512]),
            traddr=_text(data[512:768]),
            sectype=data[768],
        )

    @property
    def uri(self) -> str | None:
        """For nvme_async.open(), of an NVM subsystem over TCP."""
        if self.trtype != 3 or self.subtype != NVME:
            return None
        host = f"[{self.traddr}]" if ":" in self.traddr else self.traddr
        return f"tcp:{host}:{self.trsvcid}/{self.subnqn}"


def _text(raw: bytes) -> str:
    """ASCII, ended by NUL or padded with spaces; never more than what can be shown."""
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
    return "".join(char if char.isprintable() else "?" for char in text)


def decode_header(data: bytes) -> tuple[int, int]:
    """(generation counter, number of records) of the page's first 1024 bytes."""
    genctr, numrec, recfmt = struct.unpack_from("<QQH", data)
    if recfmt != 0:
        raise ValueError(f"a discovery log of record format {recfmt}, only format 0 is supported")
    return genctr, numrec
