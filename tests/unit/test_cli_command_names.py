"""The names of commands in the keys of the effects log are those of nvme-cli 2.13."""

from __future__ import annotations

from nvme_async.cli.nvme.shapes_logs import opcode_name

ADMIN = {
    0x00: "Delete I/O Submission Queue",
    0x01: "Create I/O Submission Queue",
    0x02: "Get Log Page",
    0x04: "Delete I/O Completion Queue",
    0x05: "Create I/O Completion Queue",
    0x06: "Identify",
    0x08: "Abort",
    0x09: "Set Features",
    0x0A: "Get Features",
    0x0C: "Asynchronous Event Request",
    0x0D: "Namespace Management",
    0x10: "Firmware Commit",
    0x11: "Firmware Image Download",
    0x14: "Device Self-test",
    0x15: "Namespace Attachment",
    0x18: "Keep Alive",
    0x19: "Directive Send",
    0x1A: "Directive Receive",
    0x1C: "Virtualization Management",
    0x1D: "NVMe-MI Send",
    0x1E: "NVMe-MI Receive",
    0x20: "Capacity Management",
    0x21: "Discovery Information Management (DIM)",
    0x22: "Fabric Zoning Receive",
    0x24: "Lockdown",
    0x25: "Fabric Zoning Lookup",
    0x28: "Clear Exported NVM Resource Configuration",
    0x29: "Fabric Zoning Send",
    0x2A: "Create Exported NVM Subsystem",
    0x2D: "Manage Exported NVM Subsystem",
    0x31: "Manage Exported Namespace",
    0x35: "Manage Exported Port",
    0x39: "Send Discovery Log Page",
    0x3D: "Track Send",
    0x3E: "Track Receive",
    0x41: "Migration Send",
    0x42: "Migration Receive",
    0x45: "Controller Data Queue",
    0x7C: "Doorbell Buffer Config",
    0x7F: "Fabrics Commands",
    0x80: "Format NVM",
    0x81: "Security Send",
    0x82: "Security Receive",
    0x84: "Sanitize",
    0x85: "Load Program",
    0x86: "Get LBA Status",
    0x88: "Program Activation Management",
    0x89: "Memory Range Set Management",
}
IO = {
    0x00: "Flush",
    0x01: "Write",
    0x02: "Read",
    0x04: "Write Uncorrectable",
    0x05: "Compare",
    0x08: "Write Zeroes",
    0x09: "Dataset Management",
    0x0C: "Verify",
    0x0D: "Reservation Register",
    0x0E: "Reservation Report",
    0x11: "Reservation Acquire",
    0x15: "Reservation Release",
    0x18: "Cancel",
    0x19: "Copy",
    0x79: "Zone Management Send",
    0x7A: "Zone Management Receive",
    0x7D: "Zone Append",
}


def test_every_command_has_nvme_clis_name() -> None:
    for opcode in range(256):
        assert opcode_name(opcode, admin=True) == ADMIN.get(opcode, "Unknown"), hex(opcode)
        assert opcode_name(opcode, admin=False) == IO.get(opcode, "Unknown"), hex(opcode)
