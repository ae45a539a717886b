"""Log pages that few controllers have (Base 2.1, 5.1.12.1): predictable latency, event aggregates,
boot partition, receiver eye opening, media units, capacity configurations, management addresses,
rotational media, reachability, dispersed namespaces.

Where a page has a list of variable length, `decode` takes what the given bytes hold completely and
raises ValueError if a list goes beyond them.
"""

from __future__ import annotations

import struct

import attrs

from nvme_async.spec._layout import Buffer, Layout, raw, uint, uints


def _bytes(data: Buffer, nbytes: int, name: str) -> bytes:
    if len(data) < nbytes:
        raise ValueError(f"{name} needs {nbytes} bytes, not {len(data)}")
    return bytes(data)


@attrs.frozen
class PredictableLatency(Layout, size=512):
    """Predictable latency of an NVM set (LID 0Ah; Base 2.1, 5.1.12.1.11)."""

    status: int = uint(0, 1)
    event_type: int = uint(2, 2)
    dtwin_rt: int = uint(32, 8)
    """Typical number of 4 KiB random reads in a deterministic window."""
    dtwin_wt: int = uint(40, 8)
    """Typical number of optimal writes."""
    dtwin_tmax: int = uint(48, 8)
    """Longest deterministic window, in milliseconds."""
    ndwin_tmin_hi: int = uint(56, 8)
    ndwin_tmin_lo: int = uint(64, 8)
    dtwin_re: int = uint(128, 8)
    """Estimated reads that are left in this window."""
    dtwin_we: int = uint(136, 8)
    dtwin_te: int = uint(144, 8)


def decode_event_aggregate(data: Buffer) -> tuple[int, tuple[int, ...]]:
    """(Entries of the page, those in `data`) of the event aggregates of NVM sets (LID 0Bh) and of
    endurance groups (LID 0Fh): identifiers with an event.
    """
    page = _bytes(data, 8, "an event aggregate")
    number = int.from_bytes(page[:8], "little")
    count = min(number, (len(page) - 8) // 2)
    return number, struct.unpack_from(f"<{count}H", page, 8)


@attrs.frozen
class LockdownList(Layout, size=512):
    """What can be prohibited by Lockdown, or is (LID 14h; Base 2.1, 5.1.12.1.20)."""

    cfila: int = uint(0, 1)
    """Scope in bits 3:0, contents in bits 5:4, as in the command."""
    lngth: int = uint(3, 1)
    cfil: bytes = raw(4, 508)

    @property
    def identifiers(self) -> tuple[int, ...]:
        """Opcodes, or feature identifiers."""
        return tuple(self.cfil[: self.lngth])


@attrs.frozen
class BootPartitionHeader(Layout, size=16):
    """Header of the boot partition log (LID 15h; Base 2.1, 5.1.12.1.21); the partition follows."""

    lid: int = uint(0, 1)
    bpinfo: int = uint(4, 4)

    @property
    def nbytes(self) -> int:
        """Bytes of the partition."""
        return (self.bpinfo & 0x7FFF) << 17

    @property
    def active(self) -> int:
        """The active boot partition's identifier."""
        return self.bpinfo >> 31


@attrs.frozen
class EyeLane(Layout, size=32):
    """EOM lane descriptor. nrows * ncols printable bytes follow, and `edlen` bytes of eye data."""

    mstatus: int = uint(1, 1)
    lane: int = uint(2, 1)
    eye: int = uint(3, 1)
    top: int = uint(4, 2)
    bottom: int = uint(6, 2)
    left: int = uint(8, 2)
    right: int = uint(10, 2)
    nrows: int = uint(12, 2)
    ncols: int = uint(14, 2)
    edlen: int = uint(16, 2)


@attrs.frozen
class EyeOpening(Layout, size=64):
    """Header of the physical interface receiver eye opening measurement (LID 19h; NVMe over PCIe
    Transport 1.1, 3.8).
    """

    lid: int = uint(0, 1)
    eomip: int = uint(1, 1)
    """1 in progress, 2 completed."""
    hsize: int = uint(2, 2)
    rsize: int = uint(4, 4)
    eomdgn: int = uint(8, 1)
    lr: int = uint(9, 1)
    odp: int = uint(10, 1)
    """Optional data: bit 0 printable eye, bit 1 eye data."""
    lanes: int = uint(11, 1)
    epl: int = uint(12, 1)
    lspfc: int = uint(13, 1)
    li: int = uint(14, 1)
    lsic: int = uint(18, 2)
    dsize: int = uint(20, 4)
    nd: int = uint(24, 2)
    maxtb: int = uint(26, 2)
    maxlr: int = uint(28, 2)
    etgood: int = uint(30, 2)
    etbetter: int = uint(32, 2)
    etbest: int = uint(34, 2)

    @property
    def nbytes(self) -> int:
        """Bytes of the page."""
        return self.hsize + (self.dsize * self.nd if self.eomip == 2 else 0)


def decode_eye_lanes(header: EyeOpening, data: Buffer) -> tuple[tuple[EyeLane, bytes], ...]:
    """Each lane's descriptor and its printable eye, empty if the controller has none."""
    page = bytes(data)
    found = []
    for index in range(header.nd if header.eomip == 2 else 0):
        at = header.hsize + index * header.dsize
        lane = EyeLane.decode(page[at:])
        size = lane.nrows * lane.ncols if header.odp & 1 else 0
        found.append((lane, _bytes(page[at + 32 :], size, "a printable eye")[:size]))
    return tuple(found)


@attrs.frozen
class MediaUnit(Layout, size=16):
    """Media unit status descriptor."""

    muid: int = uint(0, 2)
    domainid: int = uint(2, 2)
    endgid: int = uint(4, 2)
    nvmsetid: int = uint(6, 2)
    cap_adj_fctr: int = uint(8, 2)
    avl_spare: int = uint(10, 1)
    percent_used: int = uint(11, 1)
    mucs: int = uint(12, 1)
    """Channels attached."""
    cio: int = uint(13, 1)


@attrs.frozen
class MediaUnits:
    """Media unit status (LID 10h; Base 2.1, 5.1.12.1.17)."""

    nmu: int
    cchans: int
    sel_config: int
    units: tuple[MediaUnit, ...]

    @classmethod
    def decode(cls, data: Buffer) -> MediaUnits:
        page = _bytes(data, 16, "the media unit status")
        nmu, cchans, selected = struct.unpack_from("<HHH", page)
        count = min(nmu, (len(page) - 16) // 16)
        units = tuple(MediaUnit.decode(page[at : at + 16]) for at in range(16, 16 + 16 * count, 16))
        return cls(nmu, cchans, selected, units)


@attrs.frozen
class GroupConfiguration:
    """Endurance group configuration descriptor.

    Attributes:
        channels: (identifier, ((media unit, level), …)) each.
    """

    endgid: int
    cap_adj_factor: int
    tegcap: int
    segcap: int
    nvmsetids: tuple[int, ...]
    channels: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]


@attrs.frozen
class CapacityConfiguration:
    """Capacity configuration descriptor."""

    cap_config_id: int
    domainid: int
    groups: tuple[GroupConfiguration, ...]


def decode_capacity_configurations(data: Buffer) -> tuple[CapacityConfiguration, ...]:
    """Supported capacity configuration list (LID 11h; Base 2.1, 5.1.12.1.18)."""
    page = _bytes(data, 16, "the capacity configuration list")
    at = 16

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        try:
            values = struct.unpack_from("<" + form, page, at)
        except struct.error:
            raise ValueError(f"the capacity configuration list goes beyond its {len(page)} bytes") from None
        at += struct.calcsize("<" + form)
        return values

    def group() -> GroupConfiguration:
        nonlocal at
        endgid, factor = take("HH")
        total_low, total_high, spare_low, spare_high = take("12x4Q")
        (sets,) = take("32xH")
        ids = take(f"{sets}H")
        channels = []
        for _ in range(take("H")[0]):
            channel, units = take("HH")
            numbers = take(f"{2 * units}H")
            channels.append((channel, tuple(zip(numbers[::2], numbers[1::2], strict=True))))
        capacities = (total_high << 64 | total_low, spare_high << 64 | spare_low)
        return GroupConfiguration(endgid, factor, *capacities, ids, tuple(channels))

    found = []
    for _ in range(page[0]):
        identifier, domain, groups = take("HHH26x")
        found.append(CapacityConfiguration(identifier, domain, tuple(group() for _ in range(groups))))
    return tuple(found)


@attrs.frozen
class ManagementAddress(Layout, size=512):
    """Management address descriptor. mat: 1 NVM subsystem management agent, 2 fabric interface
    manager, FFh no more follow.
    """

    mat: int = uint(0, 1)
    madrs: bytes = raw(4, 508)

    @property
    def address(self) -> str:
        """Up to its first NUL."""
        return self.madrs.split(b"\0", 1)[0].decode("utf-8", "replace")


def decode_management_addresses(data: Buffer) -> tuple[ManagementAddress, ...]:
    """Management address list (LID 18h; Base 2.1, 5.1.12.1.24), at most eight."""
    page = bytes(data)
    found = []
    for at in range(0, min(len(page), 8 * 512) - 511, 512):
        entry = ManagementAddress.decode(page[at : at + 512])
        if entry.mat == 0xFF:
            break
        found.append(entry)
    return tuple(found)


@attrs.frozen
class RotationalMedia(Layout, size=512):
    """Rotational media information (LID 16h; Base 2.1, 5.1.12.1.22)."""

    endgid: int = uint(0, 2)
    numa: int = uint(2, 2)
    """Actuators."""
    nrs: int = uint(4, 2)
    """Nominal speed, in revolutions per minute."""
    spinc: int = uint(8, 4)
    fspinc: int = uint(12, 4)
    ldc: int = uint(16, 4)
    fldc: int = uint(20, 4)


@attrs.frozen
class ReachabilityGroup:
    """Reachability group descriptor."""

    rgid: int
    chngc: int
    nsids: tuple[int, ...]


@attrs.frozen
class ReachabilityAssociation:
    """Reachability association descriptor. rac: characteristics."""

    rasid: int
    chngc: int
    rac: int
    rgids: tuple[int, ...]


def _reachability(data: Buffer, name: str) -> tuple[int, list[tuple[int, int, int, tuple[int, ...]]]]:
    page = _bytes(data, 16, name)
    change, count = struct.unpack_from("<QH", page)
    at = 16
    found = []
    try:
        for _ in range(count):
            identifier, members, changes, extra = struct.unpack_from("<IIQB", page, at)
            found.append((identifier, changes, extra, struct.unpack_from(f"<{members}I", page, at + 32)))
            at += 32 + 4 * members
    except struct.error:
        raise ValueError(f"{name} go beyond their {len(page)} bytes") from None
    return change, found


def decode_reachability_groups(data: Buffer) -> tuple[int, tuple[ReachabilityGroup, ...]]:
    """(Change count, groups) of LID 1Ah (Base 2.1, 5.1.12.1.25)."""
    change, found = _reachability(data, "the reachability groups")
    return change, tuple(ReachabilityGroup(one, changes, members) for one, changes, _, members in found)


def decode_reachability_associations(data: Buffer) -> tuple[int, tuple[ReachabilityAssociation, ...]]:
    """(Change count, associations) of LID 1Bh (Base 2.1, 5.1.12.1.26)."""
    change, found = _reachability(data, "the reachability associations")
    return change, tuple(ReachabilityAssociation(*one) for one in found)


@attrs.frozen
class DispersedNamespace:
    """NVM subsystems that take part in a dispersed namespace (LID 17h; Base 2.1, 5.1.12.1.23)."""

    genctr: int
    numpsub: int
    subsystems: tuple[str, ...]

    @classmethod
    def decode(cls, data: Buffer) -> DispersedNamespace:
        page = _bytes(data, 256, "the dispersed namespace's log page")
        genctr, number = struct.unpack_from("<QQ", page)
        count = min(number, (len(page) - 256) // 256)
        names = [page[at : at + 256].split(b"\0", 1)[0] for at in range(256, 256 + 256 * count, 256)]
        return cls(genctr, number, tuple(name.decode("utf-8", "replace") for name in names))


@attrs.frozen
class ManagementCommands(Layout, size=1024):
    """NVMe-MI commands supported and effects (LID 13h; Base 2.1, 5.1.12.1.20), by opcode."""

    mis: tuple[int, ...] = uints(0, 4, 256)

    @property
    def supported(self) -> frozenset[int]:
        """Opcodes of the supported commands."""
        return frozenset(opcode for opcode, word in enumerate(self.mis) if word & 1)
