"""Log pages, features, reservations and zones against bytes computed by hand."""

from __future__ import annotations

import datetime
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec_samples import put

from nvme_async.spec import features, lba_status, logs, reservations, zns
from nvme_async.spec._bits import BitFields
from nvme_async.spec.opcodes import ReservationType

FEATURES = [
    value
    for value in vars(features).values()
    if isinstance(value, type) and issubclass(value, BitFields) and value is not BitFields
]


def test_smart() -> None:
    page = bytearray(512)
    page[0] = 0b1010
    put(page, 1, 2, 273 + 41)
    page[3:6] = bytes([100, 10, 3])
    put(page, 32, 16, 1 << 70)
    put(page, 48, 16, 3)
    put(page, 128, 16, 12345)
    put(page, 202, 2, 300)
    put(page, 228, 4, 99)
    smart = logs.SmartHealth.decode(page)
    assert smart.warnings == logs.CriticalWarning.TEMPERATURE | logs.CriticalWarning.READ_ONLY
    assert smart.temperature_celsius == 41
    assert (smart.avail_spare, smart.spare_thresh, smart.percent_used) == (100, 10, 3)
    assert smart.bytes_read == (1 << 70) * 512000
    assert smart.bytes_written == 1_536_000
    assert smart.power_on_hours == 12345
    assert smart.temperature_sensors == (0, 300, 0, 0, 0, 0, 0, 0)
    assert smart.thm_temp2_total_time == 99


def test_error_log() -> None:
    entry = struct.pack("<QHHHHQIBB2xQH22x", 7, 1, 0x12, 0x4004, 0x0028, 99, 1, 0, 1, 5, 6)
    assert len(entry) == 64
    (error,) = logs.decode_error_log(entry + bytes(64))
    assert (error.error_count, error.sqid, error.cid, error.lba, error.nsid) == (7, 1, 0x12, 99, 1)
    assert error.status == 0x2002
    assert (error.parm_error_location, error.trtype, error.cs, error.trtype_spec_info) == (0x28, 1, 5, 6)


def test_firmware_slots() -> None:
    page = bytearray(512)
    page[0] = 0x21
    page[8:16] = b"1.0".ljust(8)
    page[16:24] = b"2.0".ljust(8)
    slots = logs.FirmwareSlots.decode(page)
    assert (slots.active_slot, slots.next_slot) == (1, 2)
    assert slots.revisions == {1: "1.0", 2: "2.0"}
    assert logs.FirmwareSlots().next_slot is None


def test_changed_namespaces() -> None:
    assert logs.decode_changed_namespaces(struct.pack("<2I", 3, 5).ljust(4096, b"\0")) == (3, 5)
    assert logs.decode_changed_namespaces(bytes(4096)) == ()
    assert logs.decode_changed_namespaces(b"\xff" * 4 + bytes(4092)) is None


def test_commands_supported() -> None:
    page = bytearray(4096)
    put(page, 4 * 0x06, 4, 1)
    put(page, 4 * 0x80, 4, 1 | 1 << 1 | 2 << 16)
    put(page, 1024 + 4 * 0x01, 4, 3)
    effects = logs.CommandsSupported.decode(page)
    assert effects.admin_opcodes == {0x06, 0x80}
    assert effects.io_opcodes == {0x01}
    assert effects.admin(0x80) == logs.CommandEffects(csupp=True, lbcc=True, cse=2)
    assert effects.io(0x01).lbcc
    assert logs.SupportedLogPages.decode(page).supported == {0x06, 0x80}
    assert logs.SupportedFeatures.decode(page).supported == {0x06, 0x80}


def test_self_test() -> None:
    page = bytearray(b"\x0f" * 564)
    page[0:2] = bytes([2, 33])
    page[4:32] = struct.pack("<BBBxQIQBB2s", 0x17, 3, 0xF, 1000, 1, 77, 2, 0x81, b"vs")
    log = logs.SelfTestLog.decode(page)
    assert log.in_progress
    (result,) = log.valid_results
    assert (result.code, result.result) == (1, logs.SelfTestResultCode.FAILED_SEGMENT)
    assert (result.seg, result.poh, result.nsid, result.flba, result.sct, result.sc) == (
        3,
        1000,
        1,
        77,
        2,
        0x81,
    )


def test_telemetry_header() -> None:
    page = bytearray(512)
    page[0] = 7
    page[5:8] = b"\x00\x54\x52"
    for offset, blocks in ((8, 1), (10, 10), (12, 100)):
        put(page, offset, 2, blocks)
    put(page, 16, 4, 70000)
    page[381:384] = bytes([1, 1, 9])
    page[384:390] = b"reason"
    header = logs.TelemetryHeader.decode(page)
    assert [header.area_bytes(area) for area in (1, 2, 3, 4)] == [1024, 5632, 51712, 35840512]
    assert (header.ieee, header.hostdgn, header.ctrlavail, header.ctrldgn) == (0x525400, 1, 1, 9)
    assert header.reason == "reason"
    with pytest.raises(ValueError, match="area 5 is not in"):
        header.area_bytes(5)


def test_ana() -> None:
    page = struct.pack("<QH6x", 5, 2)
    page += struct.pack("<IIQB15x2I", 1, 2, 4, 1, 10, 11)
    page += struct.pack("<IIQB15x", 2, 0, 3, 0xF)
    ana = logs.AnaLog.decode(page)
    assert ana.chgcnt == 5
    assert ana.groups == (
        logs.AnaGroup(1, 4, logs.AnaState.OPTIMIZED, (10, 11)),
        logs.AnaGroup(2, 3, logs.AnaState.CHANGE, ()),
    )
    with pytest.raises(ValueError, match="ANA log page extends beyond its 40 bytes"):
        logs.AnaLog.decode(page[:40])


def test_sanitize_status() -> None:
    page = struct.pack("<HHII", 0x8000, 1 << 8 | 3 << 3 | 2, 2, 60).ljust(512, b"\0")
    status = logs.SanitizeStatus.decode(page)
    assert (status.state, status.progress, status.passes_completed) == (
        logs.SanitizeState.IN_PROGRESS,
        0.5,
        3,
    )
    assert status.global_data_erased
    assert status.eto == 60
    assert logs.SanitizeStatus(sprog=0xFFFF).progress == 1.0


def test_endurance_group() -> None:
    page = bytearray(512)
    page[3:6] = bytes([90, 10, 5])
    put(page, 80, 16, 1 << 65)
    put(page, 160, 16, 1 << 40)
    group = logs.EnduranceGroup.decode(page)
    assert (group.avl_spare, group.media_units_written, group.tegcap) == (90, 1 << 65, 1 << 40)


def test_lba_status() -> None:
    data = struct.pack("<IB3x", 3, 2) + struct.pack("<QIxBxx", 100, 7, 1)
    status = lba_status.LbaStatus.decode(data)
    assert (status.nlsd, status.cmpc) == (3, 2)
    assert status.descriptors == (lba_status.LbaStatusDescriptor(dslba=100, nlb=7, status=1),)


def test_lba_status_log() -> None:
    page = struct.pack("<III2xH", 64, 2, 9, 4)
    page += struct.pack("<IIB7x", 1, 1, 0x11) + struct.pack("<QI4x", 500, 15)
    page += struct.pack("<IIB7x", 2, 0xFFFF_FFFF, 0x10)
    log = lba_status.LbaStatusLog.decode(page)
    assert (log.estulb, log.lsgc) == (9, 4)
    assert log.elements == (
        lba_status.LbaStatusElement(1, 0x11, (lba_status.LbaRange(500, 15),)),
        lba_status.LbaStatusElement(2, 0x10, None),
    )
    with pytest.raises(ValueError, match="extends beyond its 40 bytes"):
        lba_status.LbaStatusLog.decode(page[:40])


@pytest.mark.parametrize("kind", FEATURES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_features_survive(kind: type[BitFields], data: st.DataObject) -> None:
    value = kind.from_int(data.draw(st.integers(0, (1 << kind._width) - 1)))
    assert kind.from_int(value.to_int()) == value


def test_number_of_queues_is_zero_based() -> None:
    assert features.NumberOfQueues.of(8, 4).to_int() == 0x0003_0007
    allocated = features.NumberOfQueues.from_int(0x003F_001F)
    assert (allocated.submission_queues, allocated.completion_queues) == (32, 64)
    for count in (0, 65536):
        with pytest.raises(ValueError, match=rf"{count} I/O queues are not in 1\.\.65535"):
            features.NumberOfQueues.of(count, 1)


@pytest.mark.parametrize(
    ("value", "dword"),
    [
        (features.Arbitration(ab=7, lpw=1, mpw=2, hpw=3), 0x0302_0107),
        (features.PowerManagement(ps=3, wh=1), 0x23),
        (features.TemperatureThreshold(tmpth=343, tmpsel=1, thsel=1), 0x0011_0157),
        (features.ErrorRecovery(tler=10, dulbe=True), 0x0001_000A),
        (features.VolatileWriteCache(wce=True), 1),
        (features.InterruptCoalescing(thr=7, time=2), 0x0207),
        (features.InterruptVectorConfiguration(iv=3, cd=True), 0x0001_0003),
        (features.AsyncEventConfiguration(smart=0x1F, nan=True, fan=True, dlc=True), 0x8000_031F),
        (features.AsyncEventConfiguration(ana=True, ege=True, zdc=True), 0x0800_4800),
        (features.KeepAliveTimer(kato=120000), 120000),
        (features.ThermalManagement(tmt1=350, tmt2=360), 350 << 16 | 360),
        (features.EnduranceGroupEvents(endgid=1, egcw=4), 0x0004_0001),
        (features.ReservationNotificationMask(regpre=True, respre=True), 0b1010),
        (features.LbaStatusInterval(lsiri=1, lsipi=2), 0x0002_0001),
    ],
)
def test_feature_values(value: BitFields, dword: int) -> None:
    assert value.to_int() == dword
    assert type(value).from_int(dword) == value


def test_units_of_features() -> None:
    assert features.InterruptCoalescing(time=3).microseconds == 300
    assert features.TemperatureThreshold(tmpth=343).celsius == 70
    assert features.NamespaceWriteProtection(wps=1).state is features.WriteProtection.PROTECTED
    assert features.FeatureCapabilities.from_int(0b101) == features.FeatureCapabilities(saveable=True, changeable=True)


def test_timestamp() -> None:
    time = datetime.datetime(2021, 5, 13, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
    stamp = features.Timestamp.of(time)
    assert stamp.encode() == (1_620_907_200_250).to_bytes(6, "little") + b"\0\0"
    assert stamp.time == time
    back = features.Timestamp.decode(stamp.encode()[:6] + b"\x02\0")
    assert back.origin is features.TimestampOrigin.SET_FEATURES
    with pytest.raises(ValueError, match="no time zone"):
        features.Timestamp.of(datetime.datetime(2021, 1, 1))


def test_power_state_transitions() -> None:
    entries = [features.PowerStateTransition(itps=3, itpt=100), features.PowerStateTransition()]
    data = features.power_state_transitions(entries)
    assert len(data) == 256
    assert data[:8].hex() == "1864000000000000"
    assert features.decode_power_state_transitions(data)[:2] == tuple(entries)
    with pytest.raises(ValueError, match="33 power states; the limit is 32"):
        features.power_state_transitions([features.PowerStateTransition()] * 33)


def test_host_behavior() -> None:
    assert features.HostBehavior(acre=1, lbafee=1).encode() == b"\x01\x00\x01" + bytes(509)


def test_reservation_report() -> None:
    header = struct.pack("<IBHxxB14x", 5, 3, 2, 1)
    data = header + struct.pack("<HB5xQQ", 1, 1, 0xA, 0xB) + struct.pack("<HB5xQQ", 2, 0, 0xC, 0xD)
    report = reservations.ReservationReport.decode(data, extended=False)
    assert (report.gen, report.rtype, report.regctl, report.ptpls) == (
        5,
        ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
        2,
        True,
    )
    assert report.holder == reservations.RegisteredController(cntlid=1, rcsts=1, hostid=0xA, rkey=0xB)
    assert len(reservations.ReservationReport.decode(data[:60], extended=False).registrants) == 1


def test_extended_reservation_report() -> None:
    data = struct.pack("<IBHxxB54x", 1, 0, 1, 0) + struct.pack("<HB5xQ16s32x", 7, 0, 0xB, b"h" * 16)
    report = reservations.ReservationReport.decode(data, extended=True)
    assert report.rtype is ReservationType.NONE
    assert report.holder is None
    assert report.registrants == (reservations.RegisteredControllerExtended(cntlid=7, rkey=0xB, hostid=b"h" * 16),)


def test_reservation_notification() -> None:
    page = struct.pack("<QBBxxI48x", 3, 2, 1, 9)
    notification = reservations.ReservationNotification.decode(page)
    assert notification.type is reservations.ReservationNotificationType.RESERVATION_RELEASED
    assert (notification.lpc, notification.nalp, notification.nsid) == (3, 1, 9)


def test_zoned_namespace() -> None:
    page = bytearray(4096)
    put(page, 2, 2, 1)
    put(page, 4, 4, 0xFFFF_FFFF)
    put(page, 8, 4, 13)
    put(page, 2816 + 16, 8, 0x8000)
    page[2816 + 16 + 8] = 2
    ns = zns.IdentifyNamespaceZns.decode(page)
    assert (ns.max_active_zones, ns.max_open_zones) == (None, 14)
    assert ns.zone_size(1) == 0x8000
    assert ns.lbafe[1].zdes == 2
    assert ns.read_across_zones
    assert zns.IdentifyControllerZns(zasl=3).max_append_size() == 32768
    assert zns.IdentifyControllerZns().max_append_size() is None


def zone(zslba: int, wp: int, state: int) -> bytes:
    return struct.pack("<BBBB4xQQQ32x", 2, state << 4, 0x81, 0, 0x7000, zslba, wp)


def test_zone_report() -> None:
    data = struct.pack("<Q56x", 9) + zone(0, 0, 1) + zone(0x8000, 0x8010, 2)
    report = zns.ZoneReport.decode(data)
    assert report.nzones == 9
    first, second = report.zones
    assert (first.state, first.zcap) == (zns.ZoneState.EMPTY, 0x7000)
    assert (second.state, second.zslba, second.wp) == (zns.ZoneState.IMPLICITLY_OPENED, 0x8000, 0x8010)
    assert zns.ZoneAttribute.DESCRIPTOR_EXTENSION_VALID in second.attributes
    extended = zns.ZoneReport.decode(
        struct.pack("<Q56x", 2) + zone(0, 0, 1) + b"a" * 64 + zone(8, 8, 1) + b"b" * 64, 64
    )
    assert extended.extensions == (b"a" * 64, b"b" * 64)
    assert [entry.zslba for entry in extended.zones] == [0, 8]
    with pytest.raises(ValueError, match="needs 64 bytes, not 63"):
        zns.ZoneReport.decode(bytes(63))


def test_changed_zones() -> None:
    page = struct.pack("<H6x2Q", 2, 0, 0x8000).ljust(4096, b"\0")
    assert zns.ChangedZones.decode(page).zslbas == (0, 0x8000)
    assert zns.ChangedZones.decode(b"\xff\xff" + bytes(4094)).zslbas is None
