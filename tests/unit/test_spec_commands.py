"""Commands against bytes computed by hand from the specification."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import NSID_ALL, Cns, Direction, Feature, LogPage, SanitizeAction, SecureErase

G = 1 << 30


def sqe(opcode: int, nsid: int = 0, prp1: int = 0, prp2: int = 0, **cdws: int) -> bytes:
    """A submission queue entry dword by dword, as in Base 3.3.3.1."""
    dwords = [0] * 16
    dwords[0], dwords[1] = opcode, nsid
    dwords[6], dwords[7] = prp1 & 0xFFFFFFFF, prp1 >> 32
    dwords[8], dwords[9] = prp2 & 0xFFFFFFFF, prp2 >> 32
    for name, value in cdws.items():
        dwords[int(name[3:])] = value
    return struct.pack("<16I", *dwords)


ENTRIES: list[tuple[Command, bytes]] = [
    (commands.identify(Cns.CONTROLLER), sqe(0x06, cdw10=0x01)),
    (commands.identify(Cns.CONTROLLERS, cntid=0x1234), sqe(0x06, cdw10=0x1234_0013)),
    (
        commands.identify(0x05, nsid=7, csi=2, cns_specific_id=3, uuid_index=1),
        sqe(0x06, 7, cdw10=5, cdw11=0x0200_0003, cdw14=1),
    ),
    (commands.get_log_page(LogPage.SMART_HEALTH, 512), sqe(0x02, NSID_ALL, cdw10=0x007F_0002)),
    (
        commands.get_log_page(0x0C, 4 * 0x12345, nsid=0, offset=0x1_0000_0004, lsp=0x7F, lsi=9, rae=True, csi=2),
        sqe(0x02, 0, cdw10=0x2344_FF0C, cdw11=0x0009_0001, cdw12=4, cdw13=1, cdw14=0x0200_0000),
    ),
    (
        commands.get_log_page(0, 1024, offset=3, index_offset=True),
        sqe(2, NSID_ALL, cdw10=255 << 16, cdw12=3, cdw14=1 << 23),
    ),
    (commands.get_features(Feature.NUMBER_OF_QUEUES), sqe(0x0A, cdw10=0x07)),
    (commands.get_features(4, sel=2, nsid=1, cdw11=5), sqe(0x0A, 1, cdw10=0x204, cdw11=5)),
    (commands.set_features(7, 0x000F_000F, save=True), sqe(0x09, cdw10=0x8000_0007, cdw11=0x000F_000F)),
    (
        commands.create_io_cq(3, 1024, 0x1_2345_6000, 5),
        sqe(0x05, prp1=0x1_2345_6000, cdw10=0x03FF_0003, cdw11=0x0005_0003),
    ),
    (commands.create_io_cq(1, 65536, 0, interrupts=False), sqe(0x05, cdw10=0xFFFF_0001, cdw11=1)),
    (
        commands.create_io_sq(3, 2, 0x1000, 4, priority=2),
        sqe(0x01, prp1=0x1000, cdw10=0x0001_0003, cdw11=0x0004_0005),
    ),
    (commands.delete_io_sq(9), sqe(0x00, cdw10=9)),
    (commands.delete_io_cq(9), sqe(0x04, cdw10=9)),
    (commands.abort(2, 0xABCD), sqe(0x08, cdw10=0xABCD_0002)),
    (commands.async_event_request(), sqe(0x0C)),
    (commands.keep_alive(), sqe(0x18)),
    (commands.doorbell_buffer_config(0x5000, 0x6000), sqe(0x7C, prp1=0x5000, prp2=0x6000)),
    (
        commands.format_nvm(1, 0x25, ses=SecureErase.CRYPTOGRAPHIC, mset=True, pi=3, pil=True),
        sqe(0x80, 1, cdw10=5 | 1 << 4 | 3 << 5 | 1 << 8 | 2 << 9 | 2 << 12),
    ),
    (commands.namespace_management(1, nsid=4), sqe(0x0D, 4, cdw10=1)),
    (commands.namespace_management(0, csi=2), sqe(0x0D, cdw11=0x0200_0000)),
    (commands.namespace_attachment(4, 1), sqe(0x15, 4, cdw10=1)),
    (commands.firmware_commit(2, 3), sqe(0x10, cdw10=2 | 3 << 3)),
    (commands.firmware_commit(0, 7, boot_partition=1), sqe(0x10, cdw10=7 << 3 | 1 << 31)),
    (commands.firmware_image_download(4096, 8192), sqe(0x11, cdw10=1023, cdw11=2048)),
    (commands.security_send(0xEA, 0x0102, 512, nssf=3, nsid=1), sqe(0x81, 1, cdw10=0xEA01_0203, cdw11=512)),
    (commands.security_receive(0, 1, 2048), sqe(0x82, cdw10=0x0000_0100, cdw11=2048)),
    (commands.directive_send(1, 2, 0x55, nsid=1, cdw12=6), sqe(0x19, 1, cdw11=0x0055_0102, cdw12=6)),
    (commands.directive_receive(1, 3, nbytes=32, nsid=1), sqe(0x1A, 1, cdw10=7, cdw11=0x0103)),
    (commands.sanitize(SanitizeAction.BLOCK_ERASE, no_deallocate=True), sqe(0x84, cdw10=2 | 1 << 9)),
    (
        commands.sanitize(
            SanitizeAction.OVERWRITE,
            overwrite_passes=16,
            overwrite_pattern=0xDEADBEEF,
            invert_pattern=True,
            allow_unrestricted_exit=True,
        ),
        sqe(0x84, cdw10=3 | 1 << 3 | 1 << 8, cdw11=0xDEADBEEF),
    ),
    (commands.sanitize(3, overwrite_passes=2), sqe(0x84, cdw10=3 | 2 << 4)),
    (commands.device_self_test(0xF, NSID_ALL), sqe(0x14, NSID_ALL, cdw10=0xF)),
    (
        commands.get_lba_status(1, 0x1_0000_0002, 64, blocks=8, action=0x10),
        sqe(0x86, 1, cdw10=2, cdw11=1, cdw12=15, cdw13=0x1000_0008),
    ),
    (commands.virtualization_management(8, 5, 1, 3), sqe(0x1C, cdw10=0x0005_0108, cdw11=3)),
    (commands.capacity_management(3, 2, 5 * G), sqe(0x20, cdw10=0x0002_0003, cdw11=G, cdw12=1)),
    (commands.lockdown(2, 0x80, True, 1), sqe(0x24, cdw10=2 | 1 << 4 | 1 << 5 | 0x80 << 8)),
    (commands.read(1, 0, 1), sqe(0x02, 1)),
    (
        commands.read(
            2,
            0x1234_5678_9ABC,
            65536,
            fua=True,
            lr=True,
            prinfo=0xF,
            stc=True,
            dsm=0x47,
            reftag=1,
            apptag=2,
            apptag_mask=3,
        ),
        sqe(
            0x02,
            2,
            cdw10=0x5678_9ABC,
            cdw11=0x1234,
            cdw12=0xFD00_FFFF,
            cdw13=0x47,
            cdw14=1,
            cdw15=0x0003_0002,
        ),
    ),
    (commands.write(1, 8, 8, fua=True), sqe(0x01, 1, cdw10=8, cdw12=7 | 1 << 30)),
    (
        commands.write(1, 8, 8, dtype=1, dspec=0x77),
        sqe(0x01, 1, cdw10=8, cdw12=7 | 1 << 20, cdw13=0x0077_0000),
    ),
    (commands.compare(1, 8, 1, fuse=1), sqe(0x05 | 1 << 8, 1, cdw10=8)),
    (
        commands.write_zeroes(1, 8, 16, deac=True, fua=True),
        sqe(0x08, 1, cdw10=8, cdw12=15 | 1 << 25 | 1 << 30),
    ),
    (commands.write_uncorrectable(1, 8, 1), sqe(0x04, 1, cdw10=8)),
    (commands.verify(1, 8, 2), sqe(0x0C, 1, cdw10=8, cdw12=1)),
    (commands.flush(NSID_ALL), sqe(0x00, NSID_ALL)),
    (commands.dataset_management(1, 256), sqe(0x09, 1, cdw10=255, cdw11=4)),
    (
        commands.copy(1, 0x2_0000_0001, 2, prinfo_read=1, prinfo_write=2, lr=True),
        sqe(0x19, 1, cdw10=1, cdw11=2, cdw12=1 | 1 << 12 | 2 << 26 | 1 << 31),
    ),
    (
        commands.copy(
            1, 7, 3, form=3, reftag=0xAABB_1122_3344_5566_7788, dtype=2, dspec=0x0105, stc_read=True, fua=True
        ),
        sqe(
            0x19,
            1,
            cdw2=0xAABB,
            cdw3=0x1122_3344,
            cdw10=7,
            cdw12=2 | 3 << 8 | 2 << 20 | 1 << 25 | G,
            cdw13=0x0105_0000,
            cdw14=0x5566_7788,
        ),
    ),
    (commands.io_management_receive(1, 1, 48), sqe(0x12, 1, cdw10=1, cdw11=11)),
    (commands.reclaim_unit_handle_update(1, 3), sqe(0x1D, 1, cdw10=1 | 2 << 16)),
    (commands.set_fdp(1, True, 2, save=True), sqe(0x09, cdw10=0x8000_001D, cdw11=1, cdw12=0x201)),
    (commands.get_fdp(1), sqe(0x0A, cdw10=0x1D, cdw11=1)),
    (commands.set_fdp_events(1, 4, 2, True), sqe(0x09, 1, cdw10=0x1E, cdw11=4 | 2 << 16, cdw12=1)),
    (commands.get_fdp_events(1, 4, 255), sqe(0x0A, 1, cdw10=0x1E, cdw11=4 | 255 << 16)),
    (commands.reservation_register(1, 2, True, cptpl=3), sqe(0x0D, 1, cdw10=2 | 1 << 3 | 3 << 30)),
    (commands.reservation_acquire(1, 1, 5), sqe(0x11, 1, cdw10=0x501)),
    (commands.reservation_release(1, 0, 1), sqe(0x15, 1, cdw10=0x100)),
    (commands.reservation_report(1, 64, extended=True), sqe(0x0E, 1, cdw10=15, cdw11=1)),
    (
        commands.zone_append(1, 0x1_0000_8000, 4, piremap=True),
        sqe(0x7D, 1, cdw10=0x8000, cdw11=1, cdw12=3 | 1 << 25),
    ),
    (commands.zone_management_send(1, 0, 4, all_zones=True), sqe(0x79, 1, cdw13=0x104)),
    (
        commands.zone_management_receive(1, 64, 4096, option=2, partial=True),
        sqe(0x7A, 1, cdw10=64, cdw12=1023, cdw13=0x1_0200),
    ),
]


@pytest.mark.parametrize(("command", "entry"), ENTRIES, ids=[command.name for command, _ in ENTRIES])
def test_entry(command: Command, entry: bytes) -> None:
    assert command.pack().hex(" ", 4) == entry.hex(" ", 4)
    unpacked = Command.unpack(entry, admin=command.admin)
    assert unpacked == attrs.evolve(command, data_length=None)


# Builders of Set Features and Get Features for one feature.
_OF_ONE_FEATURE = {"get_fdp", "set_fdp", "get_fdp_events", "set_fdp_events"}


def test_every_builder_has_a_golden_entry() -> None:
    builders = {
        name
        for name in commands.__all__
        if inspect.isfunction(function := getattr(commands, name)) and function.__annotations__["return"] == "Command"
    } - _OF_ONE_FEATURE
    seen = {(command.admin, command.opcode) for command, _ in ENTRIES}
    assert len(builders) == len(seen)


def test_data_length_of_commands() -> None:
    assert (commands.identify(1).data_length, commands.identify(1).direction) == (
        4096,
        Direction.CONTROLLER_TO_HOST,
    )
    assert commands.get_log_page(2, 512).data_length == 512
    assert commands.read(1, 0, 1).data_length is None
    assert commands.read(1, 0, 1).direction == Direction.CONTROLLER_TO_HOST
    assert commands.write(1, 0, 1).direction == Direction.HOST_TO_CONTROLLER
    assert commands.write_zeroes(1, 0, 1).direction == Direction.NONE
    # The opcode says host to controller, but PRP1 is the queue's own address.
    assert commands.create_io_cq(1, 2, 0).direction == Direction.NONE
    assert commands.set_features(Feature.NUMBER_OF_QUEUES, 0).direction == Direction.NONE
    assert commands.set_features(Feature.TIMESTAMP).data_length == 8
    assert commands.get_features(Feature.HOST_IDENTIFIER, cdw11=1).data_length == 16
    assert commands.get_features(Feature.HOST_IDENTIFIER).data_length == 8
    assert commands.get_features(Feature.HOST_BEHAVIOR, sel=3).data_length == 0
    assert commands.get_features(Feature.HOST_MEMORY_BUFFER).data_length == 4096
    assert commands.set_features(Feature.HOST_MEMORY_BUFFER, 1).data_length == 0
    assert commands.get_features(0xC5).data_length == 0
    assert commands.namespace_management(0).data_length == 4096
    assert commands.namespace_management(1, 1).data_length == 0


def test_the_queue_pair_sets_the_command_identifier() -> None:
    entry = bytearray(commands.read(1, 5, 1).pack())
    entry[2:4] = b"\xff\xff"
    assert Command.unpack(entry).pack() == commands.read(1, 5, 1).pack()


def test_psdt_and_fuse_share_a_byte() -> None:
    assert Command(opcode=2, fuse=2, psdt=1).pack()[1] == 0b0100_0010
    assert Command.unpack(Command(opcode=2, fuse=2, psdt=1).pack()).psdt == 1


def test_lba_and_blocks_for_messages() -> None:
    command = commands.write(1, 0x1_0000_0001, 65536)
    assert (command.lba, command.blocks, command.name) == (0x1_0000_0001, 65536, "Write")
    assert commands.flush(1).lba is None
    assert commands.get_log_page(2, 4).lba is None  # the same opcode as Read
    assert commands.get_log_page(2, 4).name == "Get Log Page"
    assert commands.create_io_sq(1, 2, 0, 1).name == "Create I/O Submission Queue"
    assert Command(opcode=0xC1, admin=True).name == "vendor specific admin command 0xc1"
    assert Command(opcode=0x42).name == "I/O command 0x42"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: commands.read(1, 0, 0), r"blocks 0 is not in 1\.\.65536"),
        (lambda: commands.read(1, 0, 65537), r"blocks 65537 is not in 1\.\.65536"),
        (lambda: commands.read(1, -1, 1), r"lba -1 is not in 0\.\.18446744073709551615"),
        (lambda: commands.write(1, 1 << 64, 1), r"lba 18446744073709551616 is not in"),
        (lambda: commands.write(0, 0, 1), r"nsid 0 is not in 1\.\."),
        (lambda: commands.write(1 << 32, 0, 1), r"nsid 4294967296 is not in"),
        (lambda: commands.identify(256), r"cns 256 is not in 0\.\.255"),
        (lambda: commands.get_log_page(2, 6), "nbytes 6 is not a multiple of 4"),
        (lambda: commands.get_log_page(2, 0), r"nbytes 0 is not in 4\.\."),
        (lambda: commands.get_log_page(2, 4, offset=2), "offset 2 is not a multiple of 4"),
        (lambda: commands.create_io_cq(0, 2, 0), r"qid 0 is not in 1\.\."),
        (lambda: commands.create_io_cq(1, 1, 0), r"entries 1 is not in 2\.\.65536"),
        (lambda: commands.create_io_sq(1, 2, 0x800, 1), "address 0x800 is not a multiple of 4096"),
        (lambda: commands.dataset_management(1, 257), r"ranges 257 is not in 1\.\.256"),
        (lambda: commands.dsm_ranges([]), r"number of ranges 0 is not in 1\.\.256"),
        (lambda: commands.dsm_ranges([(0, 1)] * 257), r"number of ranges 257"),
        (lambda: commands.copy_descriptors([(0, 0)]), r"blocks 0 is not in"),
        (lambda: commands.copy_descriptors([commands.CopySource(lba=0, blocks=1, nsid=2)]), "format 0 has no such"),
        (lambda: commands.copy_descriptors([commands.CopySource(lba=0, blocks=1, tags=1 << 32)]), "tags 4294967296"),
        (lambda: commands.CopySource.decode(bytes(39), 1), "40 bytes, not 39"),
        (lambda: commands.placement_list([]), "number of placements 0"),
        (lambda: commands.placement_list([1 << 16]), "placement 65536"),
        (lambda: commands.reservation_register_payload(1 << 64, 0), "current_key 18446744073709551616"),
        (lambda: Command(opcode=256), r"opcode 256 is not in 0\.\.255"),
        (lambda: Command(opcode=2, cdw15=1 << 32), "cdw15 4294967296 is not in"),
        (lambda: Command(opcode=2, data_length=-1), "data_length -1 is negative"),
        (lambda: Command.unpack(b""), "64 bytes, not 0"),
    ],
)
def test_bad_arguments_are_named_with_their_limits(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_dsm_ranges() -> None:
    payload = commands.dsm_ranges([(0x1122334455667788, 8), (16, 0xFFFFFFFF)], context=1)
    assert payload.hex() == "0100000008000000887766554433221101000000ffffffff1000000000000000"


def test_copy_descriptors_are_zero_based() -> None:
    assert commands.copy_descriptors([(0x10, 65536), (0x20, 1)]).hex() == (
        "00000000000000001000000000000000ffff" + "00" * 14 + "00000000000000002000000000000000" + "00" * 16
    )


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (0, "000000000000000010000000000000000700000000000000443322110201ffff"),
        (1, "0000000000000000100000000000000007000000000000000000000000000000112233440201ffff"),
        (2, "030000000000000010000000000000000700000000000100443322110201ffff"),
        (3, "0300000000000000100000000000000007000000000001000000000000000000112233440201ffff"),
    ],
)
def test_source_range_entries(form: int, expected: str) -> None:
    elsewhere = {"nsid": 3, "options": 1} if form >= 2 else {}
    source = commands.CopySource(lba=0x10, blocks=8, tags=0x1122_3344, apptag=0x102, apptag_mask=0xFFFF, **elsewhere)
    assert source.encode(form).hex() == expected
    assert len(source.encode(form)) == commands.copy_entry_size(form)
    assert commands.CopySource.decode(source.encode(form), form) == source


def test_placement_list() -> None:
    assert commands.placement_list([1, 0x8002]).hex() == "01000280"
    page = commands.with_placement_handles(b"\1" * 392, [3, 0x102])
    assert len(page) == 4096
    assert page[390:396].hex() == "010102000000"
    assert page[510:518].hex() == "0000030002010000"


def test_reservation_payloads() -> None:
    assert commands.reservation_register_payload(1, 2).hex() == "01000000000000000200000000000000"
    assert commands.reservation_acquire_payload(1, 2).hex() == "01000000000000000200000000000000"
    assert commands.reservation_release_payload(0x0102030405060708).hex() == "0807060504030201"


@given(st.binary(min_size=64, max_size=64))
def test_any_entry_survives_unpacking_and_packing(entry: bytes) -> None:
    # All but the command identifier, and the reserved bits between FUSE and PSDT.
    expected = entry[:1] + bytes([entry[1] & 0xC3, 0, 0]) + entry[4:]
    assert Command.unpack(entry).pack() == expected
