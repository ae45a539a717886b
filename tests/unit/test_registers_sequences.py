"""Register sequences against registers in memory: what is written, and how long the driver
waits.
"""

import asyncio

import pytest

from nvme_async.driver import command_sets
from nvme_async.driver.pcie.registers import Registers
from nvme_async.errors import ControllerTimeout
from nvme_async.spec.registers import Cap, Cc, Register


class Bank:
    """Registers in memory. ready(cc): CSTS for a value of CC."""

    uri = "memory:"
    direct = True

    def __init__(self, cap: int, crto: int = 0, ready=lambda cc: cc & 1) -> None:
        self.values = {int(Register.CAP): cap, int(Register.CRTO): crto, int(Register.VS): 0x20000}
        self.ready = ready
        self.read: list[int] = []

    def read32(self, offset: int) -> int:
        self.read.append(offset)
        if offset == Register.CSTS:
            return self.ready(self.values.get(int(Register.CC), 0))
        return self.values.get(offset, 0)

    read64 = read32

    def read_many(self, registers: list[tuple[int, int]]) -> list[int]:
        return [self.read32(offset) for offset, _ in registers]

    def write32(self, offset: int, value: int) -> None:
        self.values[offset] = value

    write64 = write32


def cap(**fields: int) -> int:
    return Cap(**({"mqes": 63, "cqr": True, "css": 1} | fields)).to_int()


@pytest.mark.parametrize(("css", "tried"), [(0x01, [0]), (0x41, [6, 0]), (0x40, [6]), (0xC0, [6])])
async def test_all_command_sets_are_chosen_if_offered(css, tried):
    """The NVM command set alone if the controller has no other, or refuses."""
    found = []
    for all_command_sets in command_sets.to_try(Cap.from_int(cap(css=css))):
        bank = Bank(cap(css=css, to=1))
        registers = Registers(bank)
        await registers.enable(
            await registers.cap(), entries=64, asq=0x1000, acq=0x2000, all_command_sets=all_command_sets
        )
        found.append(Cc.from_int(bank.values[Register.CC]).css)
        assert registers.all_command_sets is all_command_sets
    assert found == tried


@pytest.mark.parametrize(
    ("combinations", "enabled", "chosen"),
    [
        ((0b001, 0b101, 0), 0, 1),
        ((0b101, 0b001, 0), 0, 0),
        ((0b110, 0b001, 0), 0, 1),  # the NVM command set has priority
        ((0b011, 0b101, 0), 1, 1),  # as good as another: left alone
        ((0b001, 0b111, 0b101, 0), 2, 1),
        ((0, 0), 5, 5),
        ((0b001, 0b011), 7, 1),  # an index that doesn't exist
    ],
)
def test_the_combination_with_the_most_command_sets(combinations, enabled, chosen):
    assert command_sets.best(combinations, enabled) == chosen


async def test_crto_is_used_if_longer_than_cap_to():
    registers = Registers(Bank(cap(to=2, crms=1), crto=600))
    assert registers.ready_seconds(await registers.cap()) == 300.0
    registers = Registers(Bank(cap(to=20, crms=3), crto=5))
    assert registers.ready_seconds(await registers.cap()) == 10.0


async def test_crto_is_not_read_if_absent():
    bank = Bank(cap(to=2), crto=600)
    registers = Registers(bank)
    assert registers.ready_seconds(await registers.cap()) == 1.0
    assert Register.CRTO not in bank.read


async def test_enabling_waits_no_longer_than_the_limit():
    bank = Bank(cap(to=1), ready=lambda cc: 0)
    registers = Registers(bank)
    began = asyncio.get_running_loop().time()
    with pytest.raises(ControllerTimeout, match=r"longer than 0\.5 s"):
        await registers.enable(await registers.cap(), entries=64, asq=0x1000, acq=0x2000)
    assert asyncio.get_running_loop().time() - began >= 0.5
