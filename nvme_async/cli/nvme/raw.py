"""Any command, security protocols, and what administers controllers: virtualization, lockdown,
capacity, management endpoints.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import attrs
import click

from nvme_async.cli.nvme.build import FORCE, ask, builder_arguments, command, execute, say
from nvme_async.cli.nvme.features import hexdump
from nvme_async.cli.nvme.output import show
from nvme_async.cli.nvme.page import Option
from nvme_async.cli.nvme.target import first_namespace
from nvme_async.driver import management
from nvme_async.spec import commands
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import AdminOpcode, Direction
from nvme_async.spec.tcg import Discovery0

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW = click.Path(dir_okay=False, path_type=Path)
_NSID: Option = (("-n", "--namespace-id"), "nsid", int, None, "Which namespace.")
_CDWS: tuple[Option, ...] = tuple(
    ((f"-{letter}", f"--cdw{number}"), f"cdw{number}", int, 0, f"Command dword {number}.")
    for letter, number in zip("23456789", (2, 3, 10, 11, 12, 13, 14, 15), strict=True)
)


def _metadata(path: Path | None, length: int, to_host: bool) -> bytes:
    """What is in the metadata buffer at first."""
    if path is None or to_host:
        return bytes(length)
    return path.read_bytes()[:length].ljust(length, b"\0")


def _passthru(admin: bool) -> Any:
    def passthru(
        device: str | None,
        opcode: int | None,
        flags: int,
        prefill: int,
        rsvd: int,
        nsid: int | None,
        length: int,
        metadata_length: int,
        input_file: Path | None,
        metadata: Path | None,
        read: bool,
        write: bool,
        raw: bool,
        show_command: bool,
        dry_run: bool,
        latency: bool,
        **cdws: int,
    ) -> None:
        if opcode is None:
            raise click.UsageError("--opcode is needed")
        if rsvd or flags & ~3:
            raise click.UsageError(
                f"--rsvd {rsvd:#x}, --flags {flags:#x}: of dword 0 only the fused operation (bits 1:0 of --flags) "
                "can be set, the rest is the driver's"
            )
        if read and write:
            raise click.UsageError("--read and --write exclude each other")
        made = Command(opcode=opcode, fuse=flags, nsid=nsid or 0, data_length=length, admin=admin, **cdws)
        if show_command or dry_run:
            for name in ("opcode", "nsid", *cdws):
                say(f"{name:<12} : {getattr(made, name):08x}")
        if dry_run:
            return
        to_host = made.direction is Direction.CONTROLLER_TO_HOST
        if length and ((read and not to_host) or (write and to_host)):
            raise click.UsageError(f"opcode {opcode:#x} transfers data {'to' if to_host else 'from'} the host")
        payload: Any = None
        if length and not to_host:
            source = input_file.read_bytes() if input_file is not None else sys.stdin.buffer.read(length)
            payload = source[:length].ljust(length, bytes([prefill & 0xFF]))

        async def operation(controller: Any) -> Any:
            target = controller if admin else controller.namespaces[first_namespace(controller, nsid)]
            send = controller.admin if admin else target.submit
            if not metadata_length:
                began = time.perf_counter()
                return await send(made, payload), time.perf_counter() - began, b""
            if not hasattr(controller, "alloc"):
                raise click.UsageError("--metadata-len needs a controller of this process")
            with controller.alloc(metadata_length) as memory:
                memory[:metadata_length] = _metadata(metadata, metadata_length, to_host)
                began = time.perf_counter()
                completion = await send(attrs.evolve(made, mptr=memory.iova), payload)
                return completion, time.perf_counter() - began, bytes(memory[:metadata_length])

        completion, spent, separate = execute(device, operation)
        if metadata is not None and to_host:
            metadata.write_bytes(separate)
        if raw and completion.data:
            sys.stdout.buffer.write(completion.data)
            return
        kind = "Admin" if admin else "IO"
        if latency:
            say(f" latency: {kind.lower()} Command {made.name}: {spent * 1e6:.0f} us")
        say(f"{kind} Command {made.name} is Success and result: {completion.dw0:#010x}")
        if completion.data:
            say(hexdump(completion.data))

    passthru.__doc__ = f"Send any {'admin' if admin else 'I/O'} command to DEVICE."
    return passthru


for _admin in (True, False):
    command(
        "admin-passthru" if _admin else "io-passthru",
        (("-O", "--opcode"), "opcode", int, None, "Opcode."),
        (("-f", "--flags"), "flags", int, 0, "Flags: the fused operation."),
        (("-p", "--prefill"), "prefill", int, 0, "Byte that fills data that the input doesn't."),
        (("-R", "--rsvd"), "rsvd", int, 0, "Reserved bits of dword 0: only 0."),
        _NSID,
        (("-l", "--data-len"), "length", int, 0, "Bytes of data."),
        (("-m", "--metadata-len"), "metadata_length", int, 0, "Bytes of metadata in a separate buffer."),
        *_CDWS,
        (("-i", "--input-file"), "input_file", _FILE, None, "What is sent.  [default: stdin]"),
        (("-M", "--metadata"), "metadata", _NEW, None, "File of the metadata, either way."),
        (("-b", "--raw-binary"), "raw", bool, False, "The data as they are."),
        (("-s", "--show-command"), "show_command", bool, False, "Show the command, too."),
        (("-d", "--dry-run"), "dry_run", bool, False, "Show the command only."),
        (("-r", "--read"), "read", bool, False, "Data come (the opcode says so anyway)."),
        (("-w", "--write"), "write", bool, False, "Data go."),
        (("-T", "--latency"), "latency", bool, False, "Show how long it took."),
    )(_passthru(_admin))


_SECURITY = (
    (("-p", "--secp"), "secp", int, 0, "Security protocol."),
    (("-s", "--spsp"), "spsp", int, 0, "Protocol specific."),
    (("-N", "--nssf"), "nssf", int, 0, "NVMe security specific field."),
    (("-n", "--namespace-id"), "nsid", int, 0, "Namespace."),
)


@command(
    "security-send",
    *_SECURITY,
    (("-f", "--file"), "path", _FILE, None, "What is sent."),
    (("-t", "--tl"), "length", int, None, "Bytes of it to send.  [default: all]"),
)
def security_send(
    device: str | None, path: Path | None, length: int | None, secp: int, spsp: int, nssf: int, nsid: int
) -> None:
    """Send data of a security protocol to DEVICE."""
    if path is None:
        raise click.UsageError("--file is needed")
    data = path.read_bytes()[:length]
    execute(device, lambda controller: management.send_security(controller, secp, spsp, data, nssf=nssf, nsid=nsid))
    say("NVME Security Send Command Success")


@command(
    "security-recv",
    *_SECURITY,
    (("-x", "--size"), "size", int, 512, "Bytes."),
    (("-t", "--al"), "length", int, None, "Allocation length.  [default: --size]"),
    output=True,
)
def security_recv(
    device: str | None,
    size: int,
    length: int | None,
    output: str,
    human: bool,
    secp: int,
    spsp: int,
    nssf: int,
    nsid: int,
) -> None:
    """Show the answer of a security protocol of DEVICE; with -H level 0 discovery is explained."""
    data = execute(
        device,
        lambda controller: management.receive_security(controller, secp, spsp, length or size, nssf=nssf, nsid=nsid),
    )
    value: dict[str, Any] = {"secp": secp, "spsp": spsp, "data": data.hex()}
    if (secp, spsp) == (1, 1):
        value |= _discovery(Discovery0.decode(data))
    show(output, data, value, text=None if human else lambda: hexdump(data))


def _discovery(found: Discovery0) -> dict[str, Any]:
    return {
        "revision": found.revision,
        "locking_enabled": found.locking_enabled,
        "locked": found.locked,
        "features": [
            {"code": feature.code, "name": feature.name, "version": feature.version, "data": feature.data.hex()}
            for feature in found.features
        ],
    }


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
    say(f"success, Number of Controller Resources Modified (NRM):{completion.dw0:#x}")


@command(
    "lockdown",
    (("-O", "--ofi"), "target", int, 0, "Opcode or feature."),
    (("-f", "--ifc"), "interface", int, 0, "Interface."),
    (("-p", "--prhbt"), "prohibit", click.IntRange(0, 1), 0, "1: prohibit."),
    (("-s", "--scp"), "scope", int, 0, "Scope."),
    (("-U", "--uuid"), "uuid_index", int, 0, "UUID index."),
)
def lockdown(device: str | None, target: int, interface: int, prohibit: int, scope: int, uuid_index: int) -> None:
    """Prohibit or allow a command or feature of DEVICE."""
    made = commands.lockdown(scope, target, bool(prohibit), interface, uuid_index)
    execute(device, lambda controller: controller.admin(made))
    say("Lockdown Command is Successful")


@command(
    "capacity-mgmt",
    (("-O", "--operation"), "operation", click.IntRange(0, 15), None, "0 select a configuration, 1 create, 2 delete."),
    (("-i", "--element-id"), "element", int, 0, "Identifier of the element."),
    (("-l", "--cap-lower"), "low", int, 0, "Capacity in bytes, lower 32 bits."),
    (("-u", "--cap-upper"), "high", int, 0, "Capacity in bytes, upper 32 bits."),
    FORCE,
)
def capacity_mgmt(device: str | None, operation: int | None, element: int, low: int, high: int, force: bool) -> None:
    """Create, delete or configure endurance groups and NVM sets of DEVICE."""
    if operation is None:
        raise click.UsageError("--operation is needed")
    ask(device, f"capacity management operation {operation} on element {element}", force)
    with builder_arguments():
        made = commands.capacity_management(operation, element, high << 32 | low)
    completion = execute(device, lambda controller: controller.admin(made))
    say(f"Capacity Management Command is Success, created element id: {completion.dw0 & 0xFFFF:#x}")


def _management_endpoint(send: bool) -> Any:
    def endpoint(
        device: str | None,
        opcode: int,
        nsid: int,
        length: int,
        kind: int,
        nmd0: int,
        nmd1: int,
        path: Path | None,
    ) -> None:
        made = Command(
            opcode=AdminOpcode.NVME_MI_SEND if send else AdminOpcode.NVME_MI_RECEIVE,
            nsid=nsid,
            cdw10=kind << 11,
            cdw11=opcode,
            cdw12=nmd0,
            cdw13=nmd1,
            data_length=length,
            admin=True,
        )
        payload: Any = None
        if send and length:
            source = path.read_bytes() if path is not None else sys.stdin.buffer.read(length)
            payload = source[:length].ljust(length, b"\0")
        completion = execute(device, lambda controller: controller.admin(made, payload))
        say(f"NVMe-MI {'Send' if send else 'Receive'} Command is Success and result: {completion.dw0:#010x}")
        if completion.data and not send:
            say(hexdump(completion.data))

    endpoint.__doc__ = f"{'Send a command to' if send else 'Show the answer of'} the management endpoint of DEVICE."
    return endpoint


for _send in (True, False):
    command(
        "nvme-mi-send" if _send else "nvme-mi-recv",
        (("-O", "--opcode"), "opcode", click.IntRange(0, 255), 0, "NVMe-MI opcode."),
        (("-n", "--namespace-id"), "nsid", int, 0, "Namespace."),
        (("-l", "--data-len"), "length", int, 0, "Bytes of data."),
        (("-m", "--nmimt"), "kind", click.IntRange(0, 15), 0, "Message type."),
        (("-0", "--nmd0"), "nmd0", int, 0, "Management dword 0."),
        (("-1", "--nmd1"), "nmd1", int, 0, "Management dword 1."),
        (("-i", "--input-file"), "path", _FILE, None, "What is sent.  [default: stdin]"),
    )(_management_endpoint(_send))
