"""Flexible Data Placement and directives against bytes computed by hand from the specification."""

from __future__ import annotations

import struct

import pytest

from nvme_async.spec import directives, fdp
from nvme_async.spec.identify import Ctratt, Fuses, IdentifyController, IdentifyNamespaceNvm, PowerState, Sgls


def configuration(fdpa: int, nruh: int, types: tuple[int, ...], nrg: int = 1) -> bytes:
    fixed = struct.pack("<HBBIHHIQI36x", 64 + 4 * nruh, fdpa, 0, nrg, nruh, nruh * nrg - 1, 0, 96 << 20, 3600)
    return fixed + b"".join(struct.pack("<B3x", kind) for kind in types)


def test_configurations() -> None:
    entries = configuration(0x80, 2, (1, 2)) + configuration(0x92, 3, (1, 1, 1), nrg=4)
    page = struct.pack("<HBxI8x", 1, 0, 16 + len(entries)) + entries
    assert fdp.configurations_size(page) == len(page)
    first, second = fdp.decode_configurations(page + bytes(4))
    assert (first.valid, first.nruh, first.runs, first.erutl, first.ruh_types) == (True, 2, 96 << 20, 3600, (1, 2))
    assert (second.group_bits, second.uses_volatile_cache, second.nrg, second.maxpids) == (2, True, 4, 11)
    assert second.placement(2, 3) == 0xC002
    assert first.placement(1) == 1
    with pytest.raises(ValueError, match=r"reclaim group 4 is not in 0\.\.3"):
        second.placement(0, 4)
    with pytest.raises(ValueError, match=r"placement handle 16384 is not in 0\.\.16383"):
        second.placement(1 << 14)
    assert len(fdp.decode_configurations(page[:-1])) == 1  # the second is cut off
    with pytest.raises(ValueError, match="16 bytes"):
        fdp.decode_configurations(page[:15])


def test_a_configuration_that_lies_about_its_size() -> None:
    entry = bytearray(configuration(0x80, 2, (1, 1)))
    entry[8:10] = b"\xff\xff"  # more handles than it has bytes
    (found,) = fdp.decode_configurations(struct.pack("<HBxI8x", 0, 0, 0) + bytes(entry))
    assert (found.nruh, found.ruh_types) == (0xFFFF, (1, 1))
    entry[0:2] = b"\0\0"
    assert fdp.decode_configurations(struct.pack("<HBxI8x", 9, 0, 0) + bytes(entry)) == ()


def test_usage_and_statistics() -> None:
    page = struct.pack("<H6x", 3) + b"".join(struct.pack("<B7x", value) for value in (1, 2, 0))
    assert fdp.RuhUsage.decode(page).attributes == (1, 2, 0)
    statistics = fdp.FdpStatistics.decode(struct.pack("<QQQQQQ16x", 4, 1, 6, 1, 8, 0))
    assert (statistics.hbmw, statistics.mbmw, statistics.mbe) == (4 + (1 << 64), 6 + (1 << 64), 8)
    assert fdp.FdpStatistics(hbmw=4, mbmw=6).write_amplification == 1.5
    assert fdp.FdpStatistics().write_amplification is None


def test_events() -> None:
    moved = struct.pack("<BBHQI", 0x80, 7, 0x102, 0x0002_0000_0000_1234, 5)
    moved += struct.pack("<BxHQ4x", 1, 40, 0x99) + struct.pack("<HB5x24x", 3, 4)
    invalid = struct.pack("<BBHQI16xHB5x24x", 3, 0, 0x102, 0, 5, 0, 0)
    page = struct.pack("<I60x", 2) + moved + invalid
    first, second = fdp.FdpEvents.decode(page).events
    assert first.type == fdp.FdpEventType.MEDIA_REALLOCATED
    assert (first.placement, first.namespace, first.handle, first.rgid) == (0x102, 5, 4, 3)
    assert (first.reallocated_blocks, first.reallocated_lba) == (40, 0x99)
    assert second.type == fdp.FdpEventType.INVALID_PLACEMENT_IDENTIFIER
    assert (second.placement, second.namespace, second.handle) == (None, None, None)
    assert (second.reallocated_blocks, second.reallocated_lba) == (None, None)
    assert len(fdp.FdpEvents.decode(page[:-1]).events) == 1


def test_features_and_status() -> None:
    assert fdp.FdpMode.from_int(0x301) == fdp.FdpMode(fdpe=True, fdpcidx=3)
    one, two = fdp.decode_supported_events(bytes([0, 1, 3, 0, 9, 9]), 2)
    assert (one.evt, one.enabled, two.evt, two.enabled) == (0, True, 3, False)
    page = struct.pack("<14xH", 2) + struct.pack("<HHIQ16x", 1, 7, 60, 512) + struct.pack("<HHIQ16x", 2, 8, 0, 9)
    status = fdp.RuhStatus.decode(page)
    assert status.nruhsd == 2
    assert [(one.pid, one.ruhid, one.earutr, one.ruamw) for one in status.descriptors] == [
        (1, 7, 60, 512),
        (2, 8, 0, 9),
    ]
    assert len(fdp.RuhStatus.decode(page[:48]).descriptors) == 1


def test_directives() -> None:
    page = bytearray(4096)
    page[0] = 0b111
    page[32] = 0b101
    page[64] = 0b100
    parameters = directives.DirectiveParameters.decode(page)
    assert (parameters.supported, parameters.enabled, parameters.persistent) == ({0, 1, 2}, {0, 2}, {2})
    streams = directives.StreamParameters.decode(struct.pack("<HHHB9xIHHH6x", 16, 12, 2, 1, 256, 4, 4, 1))
    assert (streams.msl, streams.nssa, streams.nsso, streams.nssc) == (16, 12, 2, 1)
    assert (streams.sws, streams.sgs, streams.nsa, streams.nso) == (256, 4, 4, 1)
    assert directives.decode_streams_status(struct.pack("<HHHH", 2, 5, 9, 7)) == (5, 9)
    assert directives.decode_streams_status(struct.pack("<HH", 2, 5)) == (5,)
    with pytest.raises(ValueError, match="2 bytes"):
        directives.decode_streams_status(b"")


def test_identify_of_2_1() -> None:
    controller = IdentifyController(ctratt=1 << 19, fuses=1, acwu=7, ocfs=0b1011, sgls=1 << 20 | 1 << 16 | 2)
    assert Ctratt.FLEXIBLE_DATA_PLACEMENT in controller.attributes
    assert controller.fused_operations == Fuses.COMPARE_AND_WRITE
    assert controller.max_fused_blocks == 8
    assert controller.copy_formats == {0, 1, 3}
    assert controller.sgl_support == Sgls.OFFSET | Sgls.BIT_BUCKET
    page = bytearray(4096)
    page[9] = 5
    page[268:272] = (7).to_bytes(4, "little")
    page[292:296] = (9).to_bytes(4, "little")
    nvm = IdentifyNamespaceNvm.decode(page)
    assert (nvm.pifa, nvm.npdgl, nvm.tlbaag) == (5, 7, 9)


def test_power_state() -> None:
    page = bytearray(32)
    page[0:2] = (500).to_bytes(2, "little")
    page[3] = 3
    page[4:8] = (10000).to_bytes(4, "little")
    page[16:18] = (450).to_bytes(2, "little")
    page[18] = 1 << 6
    page[20:22] = (300).to_bytes(2, "little")
    page[22] = 2 << 6 | 2
    page[23:28] = bytes([5, 7, 9, 0x63, 0x0D])
    state = PowerState.decode(page)
    assert state.max_power_watts == pytest.approx(0.05)
    assert not state.operational
    assert state.idle_power_watts == pytest.approx(0.045)
    assert state.active_power_watts == pytest.approx(3.0)
    assert state.emergency_recovery_seconds == pytest.approx(0.005)
    assert state.quiescence_vault_seconds == pytest.approx(7.0)
    assert state.emergency_vault_seconds is None  # a reserved scale
    assert PowerState().idle_power_watts is None
