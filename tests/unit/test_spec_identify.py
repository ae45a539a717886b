"""Identify data structures: bytes from the specification's tables, QEMU's values, nvme-cli's view
of them.
"""

from __future__ import annotations

import struct
import uuid
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spec_samples import QEMU_CONTROLLER_JSON, QEMU_NAMESPACE_JSON, qemu_controller, qemu_namespace

from nvme_async.spec import _identify_lists, features, identify, lba_status, logs, reservations, zns
from nvme_async.spec._layout import Layout
from nvme_async.spec.identify import (
    CommandSets,
    IdentifyController,
    IdentifyNamespace,
    LbaFormat,
    NamespaceDescriptors,
    NamespaceGranularityList,
    Nsfeat,
    Oacs,
    Oaes,
    Oncs,
    PowerState,
    ProtectionType,
)

LAYOUTS = list(
    {
        value: None
        for module in (identify, _identify_lists, zns, logs, lba_status, features, reservations)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Layout) and value is not Layout
    }
)


def test_controller_of_qemu() -> None:
    ctrl = IdentifyController.decode(qemu_controller())
    assert (ctrl.vid, ctrl.ssvid, ctrl.sn, ctrl.mn, ctrl.fr) == (
        0x1B36,
        0x1AF4,
        "deadbeef",
        "QEMU NVMe Ctrl",
        "7.2.17",
    )
    assert str(ctrl.version) == "1.4"
    assert ctrl.ieee == 0x525400
    assert ctrl.max_transfer_size(4096) == 512 * 1024
    assert (ctrl.sq_entry_size, ctrl.cq_entry_size) == (64, 16)
    assert (ctrl.max_async_events, ctrl.max_aborts) == (4, 4)
    assert ctrl.admin_commands == Oacs.FORMAT_NVM | Oacs.NAMESPACE_MANAGEMENT | Oacs.DOORBELL_BUFFER_CONFIG
    assert Oncs.COPY in ctrl.nvm_commands
    assert Oncs.VERIFY not in ctrl.nvm_commands
    assert ctrl.async_events == Oaes.NAMESPACE_ATTRIBUTE
    assert ctrl.volatile_write_cache
    assert ctrl.flush_all_namespaces
    assert ctrl.subnqn == "nqn.2019-08.org.qemu:deadbeef"
    assert [(state.max_power_watts, state.enlat, state.exlat) for state in ctrl.power_states] == [(25.0, 16, 4)]
    assert ctrl.encode() == qemu_controller()


def test_namespace_of_qemu() -> None:
    ns = IdentifyNamespace.decode(qemu_namespace())
    assert (ns.nsze, ns.block_size, ns.nbytes) == (1 << 21, 512, 1 << 30)
    assert (ns.metadata_size, ns.extended_block_size) == (0, 512)
    assert len(ns.supported_formats) == 8
    assert ns.lbafs[7] == LbaFormat(ms=64, ds=12)
    assert Nsfeat.DEALLOCATED_ERROR in ns.features
    assert ns.optimal_write_blocks == 1
    assert ns.deallocated_reads_zero
    assert ns.protection_type is ProtectionType.NONE
    assert ns.eui64.hex() == "525400fffe000001"
    assert ns.active
    assert not IdentifyNamespace().active
    assert ns.encode() == qemu_namespace()


def types(value: Any) -> Any:
    """The shape of a JSON value."""
    if isinstance(value, dict):
        return {key: types(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [types(inner) for inner in value]
    return type(value).__name__


def test_json_equals_nvme_clis() -> None:
    ctrl = IdentifyController.decode(qemu_controller()).to_json()
    assert ctrl == QEMU_CONTROLLER_JSON
    assert types(ctrl) == types(QEMU_CONTROLLER_JSON)
    ns = IdentifyNamespace.decode(qemu_namespace()).to_json()
    assert ns == QEMU_NAMESPACE_JSON
    assert types(ns) == types(QEMU_NAMESPACE_JSON)


def test_json_of_fields_that_come_and_go() -> None:
    assert "npwg" not in IdentifyNamespace().to_json()
    assert "subnqn" not in IdentifyController().to_json()
    assert IdentifyController(tnvmcap=1 << 127).to_json()["tnvmcap"] == 1 << 127
    assert IdentifyController(sn="ab\0cd").to_json()["sn"] == "ab"
    # nvme-cli prints some of these as negative numbers.
    assert IdentifyController(oaes=1 << 31).to_json()["oaes"] == 1 << 31
    assert len(IdentifyController(npss=31).to_json()["psds"]) == 32


# Offset and size of each field in Base 2.1 and NVM 1.1, "first byte: last byte" as the tables have
# it.
CONTROLLER_FIELDS = """
vid 0:1 ssvid 2:3 sn 4:23 mn 24:63 fr 64:71 rab 72:72 ieee 73:75 cmic 76:76 mdts 77:77 cntlid 78:79
ver 80:83 rtd3r 84:87 rtd3e 88:91 oaes 92:95 ctratt 96:99 rrls 100:101 bpcap 102:102 nssl 104:107
plsi 110:110 cntrltype 111:111 fguid 112:127 crdt1 128:129 crdt2 130:131 crdt3 132:133 crcap 134:134
nvmsr 253:253 vwci 254:254 mec 255:255 oacs 256:257 acl 258:258 aerl 259:259 frmw 260:260 lpa
261:261 elpe 262:262 npss 263:263 avscc 264:264 apsta 265:265 wctemp 266:267 cctemp 268:269 mtfa
270:271 hmpre 272:275 hmmin 276:279 tnvmcap 280:295 unvmcap 296:311 rpmbs 312:315 edstt 316:317 dsto
318:318 fwug 319:319 kas 320:321 hctma 322:323 mntmt 324:325 mxtmt 326:327 sanicap 328:331 hmminds
332:335 hmmaxd 336:337 nsetidmax 338:339 endgidmax 340:341 anatt 342:342 anacap 343:343 anagrpmax
344:347 nanagrpid 348:351 pels 352:355 domainid 356:357 kpioc 358:358 mptfawr 360:361 megcap 368:383
tmpthha 384:384 cqt 386:387 sqes 512:512 cqes 513:513 maxcmd 514:515 nn 516:519 oncs 520:521 fuses
522:523 fna 524:524 vwc 525:525 awun 526:527 awupf 528:529 icsvscc 530:530 nwpc 531:531 acwu 532:533
ocfs 534:535 sgls 536:539 mnan 540:543 maxdna 544:559 maxcna 560:563 oaqd 564:567 rhiri 568:568 hirt
569:569 cmmrtd 570:571 nmmrtd 572:573 minmrtg 574:574 maxmrtg 575:575 trattr 576:576 mcudmq 578:579
mnsudmq 580:581 mcmr 582:583 nmcmr 584:585 mcdqpc 586:587 subnqn 768:1023 ioccsz 1792:1795 iorcsz
1796:1799 icdoff 1800:1801 fcatt 1802:1802 msdbd 1803:1803 ofcs 1804:1805 dctype 1806:1806 psds
2048:3071 vs 3072:4095
"""
NAMESPACE_FIELDS = """
nsze 0:7 ncap 8:15 nuse 16:23 nsfeat 24:24 nlbaf 25:25 flbas 26:26 mc 27:27 dpc 28:28 dps 29:29 nmic
30:30 rescap 31:31 fpi 32:32 dlfeat 33:33 nawun 34:35 nawupf 36:37 nacwu 38:39 nabsn 40:41 nabo
42:43 nabspf 44:45 noiob 46:47 nvmcap 48:63 npwg 64:65 npwa 66:67 npdg 68:69 npda 70:71 nows 72:73
mssrl 74:75 mcl 76:79 msrc 80:80 kpios 81:81 nulbaf 82:82 kpiodaag 84:87 anagrpid 92:95 nsattr 99:99
nvmsetid 100:101 endgid 102:103 nguid 104:119 eui64 120:127 lbafs 128:383 vs 384:4095
"""


@pytest.mark.parametrize(
    ("kind", "table"), [(IdentifyController, CONTROLLER_FIELDS), (IdentifyNamespace, NAMESPACE_FIELDS)]
)
def test_fields_have_the_specifications_offsets(kind: type[Layout], table: str) -> None:
    words = iter(table.split())
    expected = {name: tuple(map(int, next(words).split(":"))) for name in words}
    found = {name: (spec.offset, spec.offset + spec.size - 1) for name, spec in kind._specs()}
    assert found == expected


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.__name__)
def test_fields_fit_and_do_not_overlap(kind: type[Layout]) -> None:
    at = 0
    for name, spec in sorted(kind._specs(), key=lambda item: item[1].offset):
        assert spec.offset >= at, f"{name} overlaps what is before it"
        at = spec.offset + spec.size
    assert at <= kind.SIZE


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.__name__)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(seed=st.binary(min_size=1, max_size=64))
def test_any_bytes_survive_decoding_and_encoding(kind: type[Layout], seed: bytes) -> None:
    page = (seed * (kind.SIZE // len(seed) + 1))[: kind.SIZE]
    decoded = kind.decode(page)
    encoded = decoded.encode()
    for name, spec in kind._specs():
        at = slice(spec.offset, spec.offset + spec.size)
        if not isinstance(getattr(decoded, name), tuple):  # parts of structures are reserved, too
            assert encoded[at] == page[at], name
    assert kind.decode(encoded) == decoded


def test_structures_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="IdentifyController needs 4096 bytes, not 4095"):
        IdentifyController.decode(bytes(4095))


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="mdts=256 does not fit 1 bytes"):
        IdentifyController(mdts=256)
    with pytest.raises(ValueError, match="more than 20 bytes"):
        IdentifyController(sn="x" * 21)
    with pytest.raises(ValueError, match="psds has 1 elements, not 32"):
        IdentifyController(psds=(PowerState(),))
    with pytest.raises(ValueError, match="nguid has 1 bytes, not 16"):
        IdentifyNamespace(nguid=b"x")


def test_text_loses_only_its_padding() -> None:
    page = bytearray(4096)
    page[4:24] = b" a\0b\xff".ljust(20)
    ctrl = IdentifyController.decode(page)
    assert ctrl.sn.startswith(" a\0b")
    assert ctrl.encode()[4:24] == bytes(page[4:24])


def test_no_mdts_means_no_limit() -> None:
    assert IdentifyController().max_transfer_size() is None
    assert IdentifyController(mdts=5).max_transfer_size(8192) == 256 * 1024


def test_retry_delays() -> None:
    ctrl = IdentifyController(crdt1=1, crdt2=20, crdt3=300)
    assert [ctrl.retry_delay_seconds(crd) for crd in range(4)] == [0.0, 0.1, 2.0, 30.0]


def test_power_scale() -> None:
    assert PowerState(mp=10, flags=1).max_power_watts == pytest.approx(0.001)
    assert PowerState(flags=0).operational
    assert not PowerState(flags=2).operational


def formats(**by_index: int) -> tuple[LbaFormat, ...]:
    """LBA formats with these data size exponents, f0=9 for example."""
    return tuple(LbaFormat(ms=8, ds=by_index.get(f"f{index}", 0)) for index in range(64))


def test_format_index_above_fifteen() -> None:
    # FLBAS bits 6:5 are the upper ones, and valid only with more than 16 formats.
    many = IdentifyNamespace(flbas=0x22, nlbaf=40, lbafs=formats(f2=9, f18=12))
    assert (many.lbaf_index, many.block_size) == (18, 4096)
    few = attrs.evolve(many, nlbaf=7)
    assert (few.lbaf_index, few.block_size) == (2, 512)


def test_extended_metadata() -> None:
    ns = IdentifyNamespace(nsze=2, flbas=0x10, lbafs=formats(f0=9))
    assert ns.metadata_extended
    assert (ns.block_size, ns.extended_block_size, ns.nbytes) == (512, 520, 1024)


def test_a_format_that_does_not_exist_has_no_size() -> None:
    assert IdentifyNamespace().block_size == 0


def test_namespace_list() -> None:
    page = struct.pack("<3I", 1, 2, 0xFFFF_FFFE).ljust(4096, b"\0")
    assert identify.decode_namespace_list(page) == (1, 2, 0xFFFF_FFFE)
    assert identify.encode_namespace_list([1, 2, 0xFFFF_FFFE]) == page
    full = struct.pack("<1024I", *range(1, 1025))
    assert identify.decode_namespace_list(full) == tuple(range(1, 1025))
    with pytest.raises(ValueError, match="1025 namespaces; the limit is 1024"):
        identify.encode_namespace_list(range(1025))


def test_controller_list() -> None:
    page = struct.pack("<3H", 2, 7, 9).ljust(4096, b"\0")
    assert identify.decode_controller_list(page) == (7, 9)
    assert identify.encode_controller_list([7, 9]) == page
    assert len(identify.decode_controller_list(b"\xff" * 4096)) == 2047
    with pytest.raises(ValueError, match="2048 controllers; the limit is 2047"):
        identify.encode_controller_list(range(2048))


def test_namespace_descriptors() -> None:
    page = bytes.fromhex(
        "01080000"
        "0011223344556677"
        "7f020000"
        "abcd"  # of an unknown type
        "03100000"
        "00112233445566778899aabbccddeeff"
        "04010000"
        "02"
    ).ljust(4096, b"\0")
    found = NamespaceDescriptors.decode(page)
    assert found == NamespaceDescriptors(
        eui64=bytes.fromhex("0011223344556677"),
        uuid=uuid.UUID("00112233-4455-6677-8899-aabbccddeeff"),
        csi=2,
    )
    assert NamespaceDescriptors.decode(found.encode()) == found
    assert NamespaceDescriptors.decode(bytes(4096)) == NamespaceDescriptors()
    with pytest.raises(ValueError, match="NGUID has 3 bytes, not 16"):
        NamespaceDescriptors(nguid=b"abc").encode()


@given(st.binary(max_size=80))
def test_descriptors_of_any_bytes_do_not_fail(page: bytes) -> None:
    NamespaceDescriptors.decode(page)


def test_secondary_controllers() -> None:
    page = bytearray(4096)
    page[0] = 2
    page[32:46] = struct.pack("<HHB3xHHH", 1, 0, 1, 4, 5, 6)
    page[64:78] = struct.pack("<HHB3xHHH", 2, 0, 0, 7, 0, 0)
    first, second = identify.decode_secondary_controllers(page)
    assert (first.scid, first.pcid, first.online, first.vfn, first.nvq, first.nvi) == (1, 0, True, 4, 5, 6)
    assert (second.scid, second.online) == (2, False)


def test_uuid_list_ends_at_zero() -> None:
    page = bytearray(4096)
    page[48:64] = bytes(range(16))
    assert identify.decode_uuid_list(page) == (uuid.UUID(bytes=bytes(range(16))),)


def test_granularity_list_is_zero_based() -> None:
    page = bytearray(4096)
    page[0] = 1
    page[32:48] = struct.pack("<QQ", 4096, 8192)
    granularity = NamespaceGranularityList.decode(page)
    assert [(entry.nszegran, entry.ncapgran) for entry in granularity.descriptors] == [(4096, 8192)]


def test_lists_of_sets_domains_and_groups() -> None:
    page = bytearray(4096)
    page[0] = 1
    page[128:132] = struct.pack("<HH", 3, 4)
    page[144:160] = (1 << 100).to_bytes(16, "little")
    assert [(entry.nvmsetid, entry.endgid, entry.tnvmsetcap) for entry in identify.decode_nvm_sets(page)] == [
        (3, 4, 1 << 100)
    ]
    assert [(entry.domainid, entry.dcap) for entry in identify.decode_domains(page)] == [(3, 1 << 100)]
    assert identify.decode_endurance_groups(struct.pack("<3H", 2, 1, 5).ljust(4096, b"\0")) == (1, 5)


def test_command_set_combinations() -> None:
    sets = CommandSets(iocsc=(0b001, 0b101) + (0,) * 510)
    assert sets.index(0) == 0
    assert sets.index(0, 2) == 1
    assert sets.index(1) is None


def test_limits_of_the_nvm_command_set() -> None:
    page = bytes([1, 2, 3, 4]) + struct.pack("<IQ", 5, 6) + bytes(4080)
    ctrl = identify.IdentifyControllerNvm.decode(page)
    assert (ctrl.max_verify_size(), ctrl.max_write_zeroes_size(), ctrl.max_write_uncorrectable_size()) == (
        8192,
        16384,
        32768,
    )
    assert (ctrl.dmrl, ctrl.dmrsl, ctrl.dmsl) == (4, 5, 6)
    assert identify.IdentifyControllerNvm().max_write_zeroes_size() is None
