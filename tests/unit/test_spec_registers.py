"""Registers: values computed by hand from the specification."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_async.spec import registers
from nvme_async.spec._bits import BitFields
from nvme_async.spec.registers import Aqa, Cap, Cc, Cmbsz, Csts, Pmrcap, Register, Vs

BIT_FIELDS = [
    value
    for value in vars(registers).values()
    if isinstance(value, type) and issubclass(value, BitFields) and value is not BitFields
]


def test_cap_of_a_controller_as_qemu_presents_it() -> None:
    # MQES 7FFh, CQR, TO Fh, CSS NVM + admin + one or more (C1h), MPSMAX 4, CMBS
    value = 0x7FF | 1 << 16 | 0xF << 24 | 0xC1 << 37 | 4 << 52 | 1 << 57
    cap = Cap.from_int(value)
    assert cap == Cap(mqes=0x7FF, cqr=True, to=0xF, css=0xC1, mpsmax=4, cmbs=True)
    assert cap.to_int() == value
    assert cap.max_queue_entries == 2048
    assert cap.timeout_seconds == 7.5
    assert cap.doorbell_stride == 4
    assert (cap.min_page_size, cap.max_page_size) == (4096, 65536)
    assert cap.nvm_command_set
    assert cap.multiple_command_sets
    assert cap.admin_only


def test_cap_reserved_bits_are_dropped() -> None:
    assert Cap.from_int(0xFFFF_FFFF_FFFF_FFFF).to_int() == 0x1FFF_FFFF_FF07_FFFF


def test_a_timeout_of_zero_still_leaves_half_a_second() -> None:
    assert Cap().timeout_seconds == 0.5


def test_cc_for_a_usual_controller() -> None:
    cc = Cc(en=True, iosqes=6, iocqes=4)
    assert int(cc) == 0x0046_0001
    assert cc.page_size == 4096
    assert Cc.from_int(0x0046_4001).shn == registers.ShutdownNotification.NORMAL
    assert int(Cc(css=6, mps=1, ams=7, crime=True)) == 6 << 4 | 1 << 7 | 7 << 11 | 1 << 24


def test_csts() -> None:
    csts = Csts.from_int(0b0111_1011)
    assert csts == Csts(rdy=True, cfs=True, shst=2, nssro=True, pp=True, st=True)
    assert csts.shutdown_complete
    assert not Csts.from_int(1).shutdown_complete


def test_aqa_is_zero_based() -> None:
    assert int(Aqa.of(32)) == 0x001F_001F
    assert int(Aqa.of(2, 4096)) == 0x0FFF_0001
    for entries in (1, 4097):
        with pytest.raises(ValueError, match=rf"{entries} entries is not in 2\.\.4096"):
            Aqa.of(entries)


def test_version() -> None:
    assert str(Vs.from_int(0x0001_0400)) == "1.4"
    assert str(Vs.from_int(0x0001_0201)) == "1.2.1"
    assert int(Vs(mjr=2)) == 0x0002_0000


def test_cmbsz_in_bytes() -> None:
    assert Cmbsz.from_int(0x0001_0200 | 0x1F).nbytes == 16 * (1 << 20)  # SZU 2 = 1 MiB, SZ 16


def test_pmr_timeout_units() -> None:
    assert Pmrcap(pmrto=4).timeout_seconds == 2.0
    assert Pmrcap(pmrto=4, pmrtu=1).timeout_seconds == 240.0


def test_offsets() -> None:
    assert {name: int(register) for name, register in Register.__members__.items()} == {
        "CAP": 0x0,
        "VS": 0x8,
        "INTMS": 0xC,
        "INTMC": 0x10,
        "CC": 0x14,
        "CSTS": 0x1C,
        "NSSR": 0x20,
        "AQA": 0x24,
        "ASQ": 0x28,
        "ACQ": 0x30,
        "CMBLOC": 0x38,
        "CMBSZ": 0x3C,
        "BPINFO": 0x40,
        "BPRSEL": 0x44,
        "BPMBL": 0x48,
        "CMBMSC": 0x50,
        "CMBSTS": 0x58,
        "CMBEBS": 0x5C,
        "CMBSWTP": 0x60,
        "NSSD": 0x64,
        "CRTO": 0x68,
        "PMRCAP": 0xE00,
        "PMRCTL": 0xE04,
        "PMRSTS": 0xE08,
        "PMREBS": 0xE0C,
        "PMRSWTP": 0xE10,
        "PMRMSCL": 0xE14,
        "PMRMSCU": 0xE18,
    }


def test_doorbells() -> None:
    assert [registers.sq_doorbell(0, 0), registers.cq_doorbell(0, 0)] == [0x1000, 0x1004]
    assert [registers.sq_doorbell(1, 0), registers.cq_doorbell(1, 0)] == [0x1008, 0x100C]
    assert [registers.sq_doorbell(3, 2), registers.cq_doorbell(3, 2)] == [0x1000 + 6 * 16, 0x1000 + 7 * 16]
    with pytest.raises(ValueError, match="queue id 65536 is not in"):
        registers.sq_doorbell(65536, 0)
    with pytest.raises(ValueError, match="DSTRD 16 is not in"):
        registers.cq_doorbell(0, 16)


def test_all_ones_means_gone() -> None:
    assert registers.is_gone(0xFFFF_FFFF)
    assert not registers.is_gone(1)
    assert registers.is_gone(0xFFFF_FFFF_FFFF_FFFF, 8)
    assert not registers.is_gone(0xFFFF_FFFF, 8)


def test_a_field_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="iosqes=16 does not fit bits 19:16; the limit is 15"):
        Cc(iosqes=16)
    with pytest.raises(ValueError, match="not a 32-bit value"):
        Cc.from_int(1 << 32)


@pytest.mark.parametrize("kind", BIT_FIELDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_encoding_and_decoding_round_trips(kind: type[BitFields], data: st.DataObject) -> None:
    value = kind.from_int(data.draw(st.integers(0, (1 << kind._width) - 1)))
    assert kind.from_int(value.to_int()) == value
    assert int(value) == value.to_int()


@pytest.mark.parametrize("kind", BIT_FIELDS, ids=lambda kind: kind.__name__)
def test_fields_do_not_overlap(kind: type[BitFields]) -> None:
    seen = 0
    for name, low, mask in kind._fields():
        assert not seen & mask << low, name
        seen |= mask << low
    assert seen < 1 << kind._width
    assert len(attrs.fields(kind)) == len(kind._fields())  # type: ignore[type-var]
