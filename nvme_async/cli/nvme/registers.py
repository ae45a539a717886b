"""Registers: shown, and written by those who know why; and the reset of a whole NVM subsystem."""

from __future__ import annotations

from typing import Any

import click

from nvme_async.cli.nvme.build import FORCE, ask, command, execute, say
from nvme_async.cli.nvme.output import lines, show
from nvme_async.cli.nvme.page import Option
from nvme_async.cli.nvme.shapes_registers import NAMES, explain, one_property, one_register, registers, symbol
from nvme_async.cli.nvme.target import ATTACH, readable_registers, register_reader
from nvme_async.errors import ConfigurationError
from nvme_async.spec.registers import NSSR_RESET, WIDE, WITH_MSIX, Cap, Register

_WRITABLE = (
    "intms",
    "intmc",
    "cc",
    "csts",
    "nssr",
    "aqa",
    "asq",
    "acq",
    "bprsel",
    "bpmbl",
    "cmbmsc",
    "nssd",
    "pmrctl",
    "pmrmscl",
    "pmrmscu",
)


async def _read(controller: Any, wanted: tuple[Register, ...]) -> dict[Register, int]:
    try:
        reader = register_reader(controller)
    except AttributeError:
        raise ConfigurationError(f"{controller.uri} has no registers that can be read") from None
    return {register: await reader(register) for register in wanted}


async def _read_all(controller: Any) -> dict[Register, int]:
    readable = await readable_registers(controller)
    if not readable:
        raise ConfigurationError(f"{controller.uri} has no registers that can be read")
    return await _read(controller, readable)


def _register(offset: int | None, name: str = "offset") -> Register:
    if offset is None:
        raise click.UsageError(f"--{name} is needed")
    if offset not in Register._value2member_map_:
        known = ", ".join(f"{register.name}={register:#x}" for register in Register)
        raise click.UsageError(f"--{name} {offset:#x} is no register; there are {known}")
    return Register(offset)


@command("show-regs", output=True)
def show_regs(device: str | None, output: str, human: bool) -> None:
    """Show the registers of DEVICE."""
    values = execute(device, _read_all)

    def text() -> str:
        rows = []
        for register, value in values.items():
            rows.append(f"{symbol(register):<8}: {value:x}")
            if human:
                rows += lines(
                    {
                        key: one
                        for key, one in explain(register, value, values).items()
                        if key.lower() != symbol(register)
                    },
                    4,
                )
        return "\n".join(rows)

    show(output, None, registers(values, human=human), text=text)


_OFFSET: Option = (("-O", "--offset"), "offset", int, None, "Which register.")


@command("get-property", _OFFSET, output=True)
def get_property(device: str | None, offset: int | None, output: str, human: bool) -> None:
    """Show one register of DEVICE."""
    register = _register(offset)
    value = execute(device, lambda controller: _read(controller, (register,)))[register]

    def text() -> str:
        if human:
            return "\n".join(lines(one_property(register, value, human=True)))
        return f"property: {register:#x} ({NAMES[register]}), value: {value:x}"

    show(output, None, one_property(register, value, human=human), text=text)


_NAMED: tuple[Option, ...] = tuple(
    ((f"--{symbol(register)}",), symbol(register), bool, False, f"{NAMES[register]} ({register:#x}).")
    for register in Register
)


@command("get-reg", _OFFSET, *_NAMED, output=True)
def get_reg(device: str | None, offset: int | None, output: str, human: bool, **named: bool) -> None:
    """Show registers of DEVICE, by offset or by names."""
    wanted = [_register(offset)] if offset is not None else []
    wanted += [register for register in Register if named[symbol(register)]]
    if not wanted:
        raise click.UsageError("--offset or the name of a register is needed")
    if unreadable := [symbol(register) for register in wanted if register not in WITH_MSIX]:
        raise click.UsageError(f"--{unreadable[0]}: a host that uses MSI-X doesn't access this register")
    values = execute(device, lambda controller: _read(controller, tuple(wanted)))
    shown: dict[str, Any] = {}
    for register, value in values.items():
        shown |= one_register(register, value, human=human)

    def text() -> str:
        rows = []
        for register, value in values.items():
            rows.append(f"register: {register:#x} ({NAMES[register]}), value: {value:#x}")
            if human:
                rows += lines(explain(register, value, values), 2)
        return "\n".join(rows)

    show(output, None, shown, text=text)


def _write(device: str | None, wanted: dict[Register, int], halves: bool, force: bool) -> None:
    """Registers are the driver's: a write needs --force, and is impossible in a running owner."""
    if click.get_current_context().find_root().meta.get(ATTACH):
        raise click.ClickException("registers of a drive in use are not written; stop its process first")
    for register, value in wanted.items():
        if value >> (64 if register in WIDE else 32):
            raise click.UsageError(f"--value {value:#x} is too wide for {register.name}")
    ask(device, f"a write to {', '.join(register.name for register in wanted)}", force)

    async def operation(controller: Any) -> None:
        if not hasattr(controller, "registers"):
            raise ConfigurationError(f"{controller.uri} has no registers that can be written")
        for register, value in wanted.items():
            if register in WIDE and halves:
                await controller.registers.write32(register, value & 0xFFFF_FFFF)
                await controller.registers.write32(register + 4, value >> 32)
            else:
                write = controller.registers.write64 if register in WIDE else controller.registers.write32
                await write(register, value)

    execute(device, operation)
    for register, value in wanted.items():
        say(f"set-register: {register:#04x} ({NAMES[register]}), value: {value:#x}")


_VALUE: Option = (("-V", "--value"), "value", int, None, "What is written.")


@command("set-property", _OFFSET, _VALUE, FORCE)
def set_property(device: str | None, offset: int | None, value: int | None, force: bool) -> None:
    """Write one register of DEVICE."""
    register = _register(offset)
    if value is None:
        raise click.UsageError("--value is needed")
    _write(device, {register: value}, False, force)


_VALUES: tuple[Option, ...] = tuple(
    ((f"--{name}",), name, int, None, f"Value of {NAMES[Register[name.upper()]]}.") for name in _WRITABLE
)


@command(
    "set-reg",
    _OFFSET,
    _VALUE,
    (("-m", "--mmio32"), "halves", bool, False, "64-bit registers as two of 32."),
    *_VALUES,
    FORCE,
)
def set_reg(
    device: str | None, offset: int | None, value: int | None, halves: bool, force: bool, **named: int | None
) -> None:
    """Write registers of DEVICE, by offset or by names."""
    wanted: dict[Register, int] = {}
    if offset is not None:
        if value is None:
            raise click.UsageError("--value is needed")
        wanted[_register(offset)] = value
    wanted |= {Register[name.upper()]: one for name, one in named.items() if one is not None}
    if not wanted:
        raise click.UsageError("--offset and --value, or the name of a register with its value, are needed")
    _write(device, wanted, halves, force)


@command("subsystem-reset", FORCE)
def subsystem_reset(device: str | None, force: bool) -> None:
    """Reset the NVM subsystem of DEVICE, with all its controllers."""
    if click.get_current_context().find_root().meta.get(ATTACH):
        raise click.ClickException("the subsystem of a drive in use is not reset; stop its process first")
    ask(device, "a reset of the NVM subsystem", force)

    async def operation(controller: Any) -> None:
        cap = Cap.from_int((await _read(controller, (Register.CAP,)))[Register.CAP])
        if not cap.nssrs:
            raise click.ClickException("Subsystem-reset: NVM Subsystem Reset not supported.")
        await controller.registers.write32(Register.NSSR, NSSR_RESET)
        # All controllers were disabled; this one is brought up again, so that errors show here.
        await controller.reset("NVM subsystem reset")

    execute(device, operation)
