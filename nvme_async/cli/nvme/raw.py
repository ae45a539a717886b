"""Raw commands: log pages and features by number, passthrough, security, directives,
registers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from nvme_async.cli.nvme import shapes
from nvme_async.cli.nvme.build import command, execute
from nvme_async.cli.nvme.output import plain, show
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.driver import management
from nvme_async.spec import commands, features
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import NSID_ALL, Direction, Feature, FeatureSelect
from nvme_async.spec.tcg import Discovery0

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NSID = (("-n", "--namespace-id"), "nsid", int, None, "Which namespace.")
_CDWS = tuple(
    ((f"--cdw{number}",), f"cdw{number}", int, 0, f"Command dword {number}.")
    for number in (2, 3, 10, 11, 12, 13, 14, 15)
)

# The decoder in spec.features of a feature's completion dword or data structure.
VALUES: dict[int, Any] = {
    Feature.ARBITRATION: features.Arbitration,
    Feature.POWER_MANAGEMENT: features.PowerManagement,
    Feature.TEMPERATURE_THRESHOLD: features.TemperatureThreshold,
    Feature.ERROR_RECOVERY: features.ErrorRecovery,
    Feature.VOLATILE_WRITE_CACHE: features.VolatileWriteCache,
    Feature.NUMBER_OF_QUEUES: features.NumberOfQueues,
    Feature.INTERRUPT_COALESCING: features.InterruptCoalescing,
    Feature.INTERRUPT_VECTOR_CONFIGURATION: features.InterruptVectorConfiguration,
    Feature.WRITE_ATOMICITY: features.WriteAtomicity,
    Feature.ASYNC_EVENT_CONFIGURATION: features.AsyncEventConfiguration,
    Feature.AUTONOMOUS_POWER_STATE_TRANSITION: features.AutonomousPowerStateTransition,
    Feature.HOST_MEMORY_BUFFER: features.HostMemoryBuffer,
    Feature.KEEP_ALIVE_TIMER: features.KeepAliveTimer,
    Feature.HOST_CONTROLLED_THERMAL_MANAGEMENT: features.ThermalManagement,
    Feature.NON_OPERATIONAL_POWER_STATE: features.NonOperationalPowerState,
    Feature.READ_RECOVERY_LEVEL: features.ReadRecoveryLevel,
    Feature.LBA_STATUS_INTERVAL: features.LbaStatusInterval,
    Feature.SANITIZE_CONFIGURATION: features.SanitizeConfiguration,
    Feature.ENDURANCE_GROUP_EVENTS: features.EnduranceGroupEvents,
    Feature.COMMAND_SET_PROFILE: features.CommandSetProfile,
    Feature.SOFTWARE_PROGRESS_MARKER: features.SoftwareProgressMarker,
    Feature.RESERVATION_NOTIFICATION_MASK: features.ReservationNotificationMask,
    Feature.RESERVATION_PERSISTENCE: features.ReservationPersistence,
    Feature.NAMESPACE_WRITE_PROTECTION: features.NamespaceWriteProtection,
}
STRUCTURES: dict[int, Any] = {
    Feature.TIMESTAMP: features.Timestamp,
    Feature.HOST_BEHAVIOR: features.HostBehavior,
}


def feature_name(fid: int) -> str:
    if fid not in Feature._value2member_map_:
        return "Unknown"
    return Feature(fid).name.replace("_", " ").title()


@command(
    "get-log",
    (("-i", "--log-id"), "lid", int, None, "Which log page."),
    (("-l", "--log-len"), "length", int, 512, "Bytes, a multiple of 4."),
    (("-n", "--namespace-id"), "nsid", int, NSID_ALL, "Of which namespace."),
    (("-s", "--lsp"), "lsp", int, 0, "Log specific field."),
    (("-S", "--lsi"), "lsi", int, 0, "Log specific identifier."),
    (("-p", "--lpo"), "offset", int, 0, "First byte."),
    (("-r", "--rae"), "rae", bool, False, "Retain the asynchronous event."),
    (("-y", "--csi"), "csi", int, 0, "I/O command set."),
    (("-U", "--uuid-index"), "uuid_index", int, 0, "UUID index."),
    output=True,
)
def get_log(device: str | None, lid: int | None, length: int, output: str, human: bool, **more: Any) -> None:
    """Show any log page of DEVICE."""
    if lid is None:
        raise click.UsageError("--log-id is needed")
    data = execute(device, lambda controller: management.read_log(controller, lid, length, **more))
    show(output, data, {"log_id": lid, "data": data.hex()}, text=lambda: hexdump(data))


def hexdump(data: bytes) -> str:
    rows = ["       " + " ".join(f"{column:2x}" for column in range(16))]
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        rows.append(f'{at:04x}: {part.hex(" "):<47} "{text}"')
    return "\n".join(rows)


@command(
    "get-feature",
    (("-f", "--feature-id"), "fid", int, None, "Which feature."),
    _NSID,
    (("-s", "--sel"), "select", click.IntRange(0, 3), 0, "0 current, 1 default, 2 saved, 3 capabilities."),
    (("-c", "--cdw11"), "cdw11", int, 0, "Command dword 11."),
    (("-U", "--uuid-index"), "uuid_index", int, 0, "UUID index."),
    output=True,
)
def get_feature(
    device: str | None, fid: int | None, nsid: int | None, select: int, output: str, human: bool, **more: Any
) -> None:
    """Show a feature of DEVICE."""
    if fid is None:
        raise click.UsageError("--feature-id is needed")

    async def operation(controller: Any) -> Any:
        return await controller.admin(
            commands.get_features(fid, sel=select, nsid=nsid or 0, cdw11=more["cdw11"], uuid_index=more["uuid_index"])
        )

    completion = execute(device, operation)
    words = ("Current", "Default", "Saved", "Supported capabilities")[select]
    value: dict[str, Any] = {
        "feature": f"{fid:#04x}",
        "name": feature_name(fid),
        "select": words,
        "value": completion.dw0,
    }
    if completion.data:
        value["data"] = completion.data.hex()
    if human or output == "json":
        if select == FeatureSelect.CAPABILITIES:
            value["fields"] = plain(features.FeatureCapabilities.from_int(completion.dw0 & 7))
        elif fid in STRUCTURES and completion.data:
            value["fields"] = plain(STRUCTURES[fid].decode(completion.data))
        elif fid in VALUES:
            value["fields"] = plain(VALUES[fid].from_int(completion.dw0))

    def text() -> str:
        head = f"get-feature:{fid:#04x} ({feature_name(fid)}), {words} value:{completion.dw0:08x}"
        rows = [f"\t{key}: {item}" for key, item in value.get("fields", {}).items()]
        return "\n".join([head, *rows, *([hexdump(completion.data)] if completion.data else [])])

    show(output, completion.data, value, text=text)


@command(
    "set-feature",
    (("-f", "--feature-id"), "fid", int, None, "Which feature."),
    _NSID,
    (("-V", "--value"), "value", int, 0, "Command dword 11."),
    (("-c", "--cdw12"), "cdw12", int, 0, "Command dword 12."),
    (("-d", "--data"), "data", _FILE, None, "File with the data structure."),
    (("-s", "--save"), "save", bool, False, "Keep it over power cycles."),
)
def set_feature(
    device: str | None, fid: int | None, nsid: int | None, value: int, cdw12: int, data: Path | None, save: bool
) -> None:
    """Change a feature of DEVICE."""
    if fid is None:
        raise click.UsageError("--feature-id is needed")
    payload = None if data is None else data.read_bytes()

    async def operation(controller: Any) -> Any:
        made = commands.set_features(fid, value, nsid or 0, save, cdw12)
        return await controller.admin(made, payload)

    completion = execute(device, operation)
    click.echo(
        f"set-feature:{fid:#04x} ({feature_name(fid)}), value:{value:#010x}, cdw12:{cdw12:#010x}, save:{int(save):#x}"
    )
    if completion.dw0:
        click.echo(f"result: {completion.dw0:#x}")


def _passthru(admin: bool) -> Any:
    def passthru(
        device: str | None,
        opcode: int | None,
        flags: int,
        nsid: int | None,
        length: int,
        input_file: Path | None,
        read: bool,
        write: bool,
        raw: bool,
        show_command: bool,
        dry_run: bool,
        **cdws: int,
    ) -> None:
        if opcode is None:
            raise click.UsageError("--opcode is needed")
        made = Command(opcode=opcode, fuse=flags & 3, nsid=nsid or 0, data_length=length, admin=admin, **cdws)
        if show_command or dry_run:
            for name in ("opcode", "nsid", *cdws):
                click.echo(f"{name:<12} : {getattr(made, name):08x}")
        if dry_run:
            return
        to_host = made.direction is Direction.CONTROLLER_TO_HOST
        payload: Any = None
        if length and not to_host:
            source = input_file.read_bytes() if input_file is not None else sys.stdin.buffer.read(length)
            payload = source[:length].ljust(length, b"\0")

        async def operation(controller: Any) -> Any:
            if admin:
                return await controller.admin(made, payload)
            return await controller.namespaces[first_namespace(controller, nsid)].submit(made, payload)

        completion = execute(device, operation)
        if raw and completion.data:
            sys.stdout.buffer.write(completion.data)
            return
        kind = "Admin" if admin else "IO"
        click.echo(f"{kind} Command {made.name} is Success and result: {completion.dw0:#010x}")
        if completion.data:
            click.echo(hexdump(completion.data))

    passthru.__doc__ = f"Send any {'admin' if admin else 'I/O'} command to DEVICE."
    return passthru


for _admin in (True, False):
    command(
        "admin-passthru" if _admin else "io-passthru",
        (("-o", "--opcode", "-O"), "opcode", int, None, "Opcode."),
        (("-f", "--flags"), "flags", int, 0, "Flags: FUSE."),
        _NSID,
        (("-l", "--data-len"), "length", int, 0, "Bytes of data."),
        (("-i", "--input-file"), "input_file", _FILE, None, "What is sent.  [default: stdin]"),
        (("-r", "--read"), "read", bool, False, "Data come (the opcode says so anyway)."),
        (("-w", "--write"), "write", bool, False, "Data go."),
        (("-b", "--raw-binary"), "raw", bool, False, "The data as they are."),
        (("-s", "--show-command"), "show_command", bool, False, "Show the command, too."),
        (("-d", "--dry-run"), "dry_run", bool, False, "Show the command only."),
        *_CDWS,
    )(_passthru(_admin))


_SECURITY = (
    (("-p", "--secp"), "secp", int, 0, "Security protocol."),
    (("-s", "--spsp"), "spsp", int, 0, "Protocol specific."),
    (("-N", "--nssf"), "nssf", int, 0, "NVMe security specific field."),
    (("-n", "--namespace-id"), "nsid", int, 0, "Namespace."),
)


@command("security-send", *_SECURITY, (("-f", "--file"), "path", _FILE, None, "What is sent."))
def security_send(device: str | None, path: Path | None, secp: int, spsp: int, nssf: int, nsid: int) -> None:
    """Send data of a security protocol to DEVICE."""
    if path is None:
        raise click.UsageError("--file is needed")
    data = path.read_bytes()
    execute(device, lambda controller: management.send_security(controller, secp, spsp, data, nssf=nssf, nsid=nsid))
    click.echo("NVME Security Send Command Success")


@command("security-recv", *_SECURITY, (("-x", "--size"), "size", int, 512, "Bytes."), output=True)
def security_recv(
    device: str | None, size: int, output: str, human: bool, secp: int, spsp: int, nssf: int, nsid: int
) -> None:
    """Show the answer of a security protocol of DEVICE; with -H level 0 discovery is explained."""
    data = execute(
        device, lambda controller: management.receive_security(controller, secp, spsp, size, nssf=nssf, nsid=nsid)
    )
    value: dict[str, Any] = {"secp": secp, "spsp": spsp, "data": data.hex()}
    if (secp, spsp) == (1, 1):
        value |= shapes.discovery(Discovery0.decode(data))
    show(output, data, value, text=None if human else lambda: hexdump(data))


@command("persistent-event-log", output=True)
def persistent_event_log(device: str | None, output: str, human: bool) -> None:
    """Show the events of DEVICE."""
    log = execute(device, management.persistent_event_log)
    show(output, None, shapes.persistent(log))


_DIRECTIVE = (
    (("-n", "--namespace-id"), "nsid", int, NSID_ALL, "Namespace."),
    (("-D", "--dir-type"), "dtype", int, 0, "Directive type: 0 identify, 1 streams, 2 data placement."),
    (("-S", "--dir-spec"), "dspec", int, 0, "Directive specific."),
    (("-O", "--dir-oper"), "doper", int, 0, "Operation."),
    (("-l", "--data-len"), "length", int, 0, "Bytes of data."),
)


@command("dir-receive", *_DIRECTIVE, (("-r", "--req-resource"), "cdw12", int, 0, "Command dword 12."), output=True)
def dir_receive(
    device: str | None, output: str, human: bool, nsid: int, dtype: int, dspec: int, doper: int, length: int, cdw12: int
) -> None:
    """Show the answer of a directive of DEVICE."""
    made = commands.directive_receive(dtype, doper, dspec, length, nsid, cdw12)
    completion = execute(device, lambda controller: controller.admin(made))
    data = completion.data or b""
    show(
        output,
        data,
        {"result": completion.dw0, "data": data.hex()},
        text=lambda: f"dir-receive: result {completion.dw0:#x}\n{hexdump(data)}",
    )


@command(
    "dir-send",
    *_DIRECTIVE,
    (("-T", "--target-dir"), "target", int, 0, "Identify: the directive type to switch."),
    (("-e", "--endir"), "enable", click.IntRange(0, 1), 0, "Identify: 1 enables it."),
    (("-i", "--input-file"), "path", _FILE, None, "What is sent."),
)
def dir_send(
    device: str | None,
    nsid: int,
    dtype: int,
    dspec: int,
    doper: int,
    length: int,
    target: int,
    enable: int,
    path: Path | None,
) -> None:
    """Send a directive to DEVICE."""
    data = path.read_bytes()[:length] if path is not None and length else None
    made = commands.directive_send(dtype, doper, dspec, length, nsid, target << 8 | enable)
    completion = execute(device, lambda controller: controller.admin(made, data))
    click.echo(
        f"dir-send: type {dtype:#x}, operation {doper:#x}, spec_val {dspec:#x}, nsid {nsid:#x}, "
        f"result {completion.dw0:#x}"
    )


@command(
    "virt-mgmt",
    (("-c", "--cntlid"), "cntlid", int, 0, "Controller."),
    (("-r", "--rt"), "kind", click.IntRange(0, 1), 0, "Resource: 0 queues, 1 interrupts."),
    (("-a", "--act"), "action", int, 0, "1 primary, 7 offline, 8 assign, 9 online."),
    (("-n", "--nr"), "count", int, 0, "How many."),
)
def virt_mgmt(device: str | None, cntlid: int, kind: int, action: int, count: int) -> None:
    """Assign resources of DEVICE to a controller, or set one offline."""
    made = commands.virtualization_management(action, cntlid, kind, count)
    completion = execute(device, lambda controller: controller.admin(made))
    click.echo(f"success, Number of Controller Resources Modified (NRM):{completion.dw0:#x}")


@command(
    "lockdown",
    (("-o", "--ofi"), "target", int, 0, "Opcode or feature."),
    (("-f", "--ifc"), "interface", int, 0, "Interface."),
    (("-p", "--prhbt"), "prohibit", click.IntRange(0, 1), 0, "1: prohibit."),
    (("-s", "--scp"), "scope", int, 0, "Scope."),
    (("-U", "--uuid"), "uuid_index", int, 0, "UUID index."),
)
def lockdown(device: str | None, target: int, interface: int, prohibit: int, scope: int, uuid_index: int) -> None:
    """Prohibit or allow a command or feature of DEVICE."""
    made = commands.lockdown(scope, target, bool(prohibit), interface, uuid_index)
    execute(device, lambda controller: controller.admin(made))
    click.echo("Lockdown Command is Successful")


_OFFSETS = {"CAP": 0x0, "VS": 0x8, "CC": 0x14, "CSTS": 0x1C, "AQA": 0x24, "ASQ": 0x28, "ACQ": 0x30, "CRTO": 0x68}


async def _registers(controller: Any) -> dict[str, int]:
    if not hasattr(controller, "registers"):
        raise click.UsageError("registers can't be read through --attach; nvme-async inspect --registers shows them")
    return {name: int(value, 16) for name, value in (await controller.registers.snapshot()).items()}


@command("show-regs", output=True)
def show_regs(device: str | None, output: str, human: bool) -> None:
    """Show the registers of DEVICE."""
    values = execute(device, _registers)
    show(
        output, None, values, text=lambda: "\n".join(f"{name.lower():<8}: {value:x}" for name, value in values.items())
    )


@command("get-property", (("-O", "--offset"), "offset", int, None, "Which register."), output=True)
def get_property(device: str | None, offset: int | None, output: str, human: bool) -> None:
    """Show one register of DEVICE."""
    found = [name for name, at in _OFFSETS.items() if at == offset]
    values = execute(device, _registers)
    if not found or found[0] not in values:
        raise click.UsageError(f"--offset must be one of {', '.join(f'{_OFFSETS[name]:#x}' for name in values)}")
    name, value = found[0], values[found[0]]
    show(output, None, {name: value}, text=lambda: f"property: {offset:#x} ({name}), value: {value:x}")
