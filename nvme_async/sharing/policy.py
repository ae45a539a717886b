"""The limits of workers, and the admin commands that they may send."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from nvme_async.errors import ConfigurationError, LeaseError
from nvme_async.sharing.protocol import MAX_QUEUES
from nvme_async.spec.commands import Command
from nvme_async.spec.opcodes import AdminOpcode, Feature, LogPage

Admin = Literal["none", "read-only", "all"]

# These change nothing that another process relies on.
_READ_ONLY = frozenset(
    {
        AdminOpcode.IDENTIFY,
        AdminOpcode.GET_LOG_PAGE,
        AdminOpcode.GET_FEATURES,
        AdminOpcode.KEEP_ALIVE,
        AdminOpcode.DIRECTIVE_RECEIVE,
        AdminOpcode.GET_LBA_STATUS,
    }
)
# Only the owner does this, regardless of the policy: queues, events, memory that the controller
# writes to later.
_OWNERS = frozenset(
    {
        AdminOpcode.CREATE_IO_CQ,
        AdminOpcode.CREATE_IO_SQ,
        AdminOpcode.DELETE_IO_CQ,
        AdminOpcode.DELETE_IO_SQ,
        AdminOpcode.ASYNC_EVENT_REQUEST,
        AdminOpcode.DOORBELL_BUFFER_CONFIG,
        AdminOpcode.VIRTUALIZATION_MANAGEMENT,
    }
)
_OWNERS_FEATURES = frozenset(
    {Feature.NUMBER_OF_QUEUES, Feature.ASYNC_EVENT_CONFIGURATION, Feature.HOST_MEMORY_BUFFER, Feature.KEEP_ALIVE_TIMER}
)


def _between(low: float, high: float) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise ConfigurationError(f"{attribute.name} is {value}, must be {low} to {high}")

    return check


def _admin(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if value not in ("none", "read-only", "all"):
        raise ConfigurationError(f"admin is {value!r}, not one of none, read-only, all")


@attrs.frozen(kw_only=True)
class Policy:
    """Options of controller.share().

    Attributes:
        workers: leases at the same time.
        queues: I/O queue pairs of one worker. The controller's number of queue pairs (the option
            io_queues of open(), and what the controller grants) bounds all together.
        pool_bytes: memory that one worker may have mapped for DMA.
        entries: of one of its queues.
        admin: which admin commands workers may send: "none", "read-only" (Identify, log pages,
            features, and an Abort of their own commands), or "all" except those that manage queues
            and events.
        stop_seconds: how long a reset waits for each worker's confirmation that it rings no
            doorbell any more. The queue ids of a later worker stay reserved, without queues, until
            it has confirmed.
        absent_seconds: how long the lease of a living process lasts without a connection.
    """

    workers: int = attrs.field(default=64, validator=_between(1, 1000))
    queues: int = attrs.field(default=1, validator=_between(1, MAX_QUEUES))
    pool_bytes: int = attrs.field(default=256 << 20, validator=_between(1 << 20, 1 << 40))
    entries: int = attrs.field(default=1024, validator=_between(2, 4096))
    admin: Admin = attrs.field(default="read-only", validator=_admin)
    stop_seconds: float = attrs.field(default=0.5, validator=_between(0.0, 60.0))
    absent_seconds: float = attrs.field(default=30.0, validator=_between(0.1, 3600.0))

    @classmethod
    def of(cls, options: dict[str, Any]) -> Policy:
        """From keyword arguments; ConfigurationError names an unknown one."""
        known = [field.name for field in attrs.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigurationError(f"unknown sharing option {name!r}; the options are {', '.join(known)}")
        return cls(**options)

    def check_admin(self, command: Command, qids: set[int]) -> None:
        """LeaseError with code "policy" unless a worker with these queues may send the admin
        command.
        """
        opcode = command.opcode
        feature = command.cdw10 & 0xFF
        if opcode == AdminOpcode.ABORT:
            allowed = command.cdw10 & 0xFFFF in qids
            if not allowed:
                raise LeaseError("a worker may abort only commands of its own queues", code="policy")
            return
        if opcode in _OWNERS or (opcode == AdminOpcode.SET_FEATURES and feature in _OWNERS_FEATURES):
            raise LeaseError(f"{command.name} is reserved for the owner", code="policy")
        if opcode == AdminOpcode.GET_LOG_PAGE and self.admin != "all" and _has_effect(command):
            raise LeaseError(
                f"{command.name} that makes the controller collect a new log is not read-only", code="policy"
            )
        if self.admin == "none" and opcode not in (AdminOpcode.IDENTIFY, AdminOpcode.GET_LOG_PAGE):
            raise LeaseError(f"{command.name}: workers may send no admin commands (the option admin)", code="policy")
        if self.admin != "all" and opcode not in _READ_ONLY:
            raise LeaseError(
                f"{command.name} is not a read-only admin command, and workers may send only those (the option admin)",
                code="policy",
            )


def _has_effect(command: Command) -> bool:
    """Log pages whose reading changes them (Base 2.0, 5.16.1.8 and 5.16.1.14): LSP in bits 14:08
    of dword 10.
    """
    lsp = command.cdw10 >> 8 & 0x7F
    return bool(command.cdw10 & 0xFF in (LogPage.TELEMETRY_HOST, LogPage.PERSISTENT_EVENT) and lsp)
