"""Controllers that deviate from the specification, by their PCI ids, and the driver's
workarounds.

Each entry names its public source. The table can be overridden; the first match wins:

1. the option `quirks=` of open(): "none", names separated by commas instead of the table's, or
   "+name" and "-name" to add to them and take from them;
2. the command line, --quirks: the same, or the same for devices as in the variable;
3. the environment variable NVME_ASYNC_QUIRKS: the same for devices, separated by semicolons:
   "1c58:0003=-delay-before-ready; *=+single-vector". "vvvv:dddd" is PCI vendor and device,
   "vvvv:dddd:ssss:ssss" adds the subsystem's, "*" is any device.

controller.inspect()["quirks"], `nvme-async list` and `nvme-async doctor` show which quirks apply,
and why.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import attrs

from nvme_async.device.base import DeviceIds
from nvme_async.errors import ConfigurationError

VARIABLE = "NVME_ASYNC_QUIRKS"
COMMAND_LINE = "the command line's --quirks"
_LINUX = "Linux, drivers/nvme/host/pci.c"
_SPDK = "SPDK, lib/nvme/nvme_quirks.c"


class Quirk(enum.StrEnum):
    """A controller's quirks. The docstring of each says what the driver does."""

    PRP_LAST_ENTRY = "prp-last-entry"
    """Treats the last entry of a PRP list's page as a pointer to another list, although the list
    ends there: lists don't use that entry.
    """
    DELAY_BEFORE_INIT = "delay-before-init"
    """Its registers aren't ready right after the device was opened (which resets it): the driver
    waits 2 s before the first access.
    """
    DELAY_BEFORE_READY = "delay-before-ready"
    """CSTS.RDY is invalid for up to 2.3 s after CC.EN was cleared: it isn't read before."""
    QUEUE_DEPTH_ONE = "queue-depth-one"
    """Concurrent commands lead to resets and lost data: one I/O queue, one command at a time."""
    SINGLE_VECTOR = "single-vector"
    """Only interrupt vector 0 works: the admin queue and one I/O queue share it."""
    IDENTIFY_CNS = "identify-cns"
    """Identify supports only CNS 0 and 1: namespace ids are tried one by one."""
    NO_DOORBELL_BUFFER = "no-doorbell-buffer"
    """Doorbell Buffer Config is offered but doesn't work: it isn't used."""
    BOGUS_IDS = "bogus-ids"
    """NGUID and EUI-64 are the same for several namespaces or drives, or change: they identify
    nothing.
    """
    LARGE_SQE = "large-sqe"
    """I/O submission queue entries have 128 bytes: not supported, so it isn't opened."""
    KEEPALIVE_BY_CLASS = "keepalive-by-class"
    """Its admin queue isn't to be relied on after the process was replaced: with keepalive it is
    driven fused (the option of that name).
    """


@attrs.frozen
class Entry:
    """Which devices, their quirks, and the source. model and firmware are patterns as in file
    names ("" is any), compared with Identify Controller's once that is known.
    """

    vendor: int
    device: int
    name: str
    quirks: Collection[Quirk]
    source: str
    subsystem_vendor: int | None = None
    subsystem: int | None = None
    model: str = ""
    firmware: str = ""

    def matches(self, ids: DeviceIds, model: str, firmware: str) -> bool:
        return (
            (self.vendor, self.device) == (ids.vendor, ids.device)
            and self.subsystem_vendor in (None, ids.subsystem_vendor)
            and self.subsystem in (None, ids.subsystem)
            and (not self.model or fnmatchcase(model, self.model))
            and (not self.firmware or fnmatchcase(firmware, self.firmware))
        )


def _linux(vendor: int, device: int, name: str, flag: str, *quirks: Quirk) -> Entry:
    return Entry(vendor, device, name, quirks, f"{_LINUX}: {flag}")


_DELAY = ("NVME_QUIRK_DELAY_BEFORE_CHK_RDY", Quirk.DELAY_BEFORE_READY)
_BOGUS = ("NVME_QUIRK_BOGUS_NID", Quirk.BOGUS_IDS)

TABLE: tuple[Entry, ...] = (
    _linux(0x1217, 0x8760, "O2 Micro, Steam Deck 64 GB", "NVME_QUIRK_DMAPOOL_ALIGN_512", Quirk.PRP_LAST_ENTRY),
    _linux(0x1BB1, 0x0100, "Seagate Nytro", *_DELAY),
    _linux(0x1C58, 0x0003, "HGST adapter", *_DELAY),
    _linux(0x1C58, 0x0023, "WDC SN200", *_DELAY),
    _linux(0x1C5F, 0x0540, "Memblaze PBlaze4", *_DELAY),
    _linux(0x144D, 0xA821, "Samsung PM1725", *_DELAY),
    _linux(0x144D, 0xA822, "Samsung PM1725a", *_DELAY),
    Entry(0x8086, 0x0953, "Intel P3700", {Quirk.DELAY_BEFORE_INIT}, f"{_SPDK}: NVME_QUIRK_DELAY_BEFORE_INIT"),
    Entry(0x8086, 0x0A53, "Intel P3520", {Quirk.DELAY_BEFORE_INIT}, f"{_SPDK}: NVME_QUIRK_DELAY_BEFORE_INIT"),
    _linux(
        0x106B,
        0x2001,
        "Apple, MacBook8,1",
        "NVME_QUIRK_SINGLE_VECTOR, NVME_QUIRK_QDEPTH_ONE",
        Quirk.SINGLE_VECTOR,
        Quirk.QUEUE_DEPTH_ONE,
    ),
    _linux(
        0x106B,
        0x2005,
        "Apple T2",
        "NVME_QUIRK_SINGLE_VECTOR, NVME_QUIRK_128_BYTES_SQES, NVME_QUIRK_IDENTIFY_CNS",
        Quirk.SINGLE_VECTOR,
        Quirk.LARGE_SQE,
        Quirk.IDENTIFY_CNS,
    ),
    _linux(
        0x8086,
        0x5845,
        "QEMU before 5.2",
        "NVME_QUIRK_IDENTIFY_CNS, NVME_QUIRK_BOGUS_NID",
        Quirk.IDENTIFY_CNS,
        Quirk.BOGUS_IDS,
    ),
    Entry(
        0x01DE,
        0x0000,
        "Oxide Propolis",
        {Quirk.NO_DOORBELL_BUFFER},
        "oxidecomputer/propolis, pull request 1023: guests' I/O that never completes",
    ),
    Entry(
        0x1414,
        0xB111,
        "Microsoft Azure direct disk",
        {Quirk.KEEPALIVE_BY_CLASS},
        "microsoft/openvmm: keepalive by device class",
    ),
    _linux(0x8086, 0x0A54, "Intel P4500, P4600", *_BOGUS),
    _linux(0x1B36, 0x0010, "QEMU", *_BOGUS),
    _linux(0x126F, 0x2262, "Silicon Motion", *_BOGUS),
    _linux(0x126F, 0x2263, "Silicon Motion", *_BOGUS),
    _linux(0x1987, 0x5012, "Phison E12", *_BOGUS),
    _linux(0x1987, 0x5016, "Phison E16", *_BOGUS),
    _linux(0x1CC1, 0x33F8, "ADATA IM2P33F8ABR1", *_BOGUS),
    _linux(0x10EC, 0x5762, "ADATA SX6000LNP", *_BOGUS),
    _linux(0x10EC, 0x5763, "ADATA SX6000PNP", *_BOGUS),
    _linux(0x10EC, 0x5765, "TEAMGROUP MP33", *_BOGUS),
    _linux(0x1344, 0x6001, "Micron Nitro", *_BOGUS),
    _linux(0x1C5C, 0x174A, "SK hynix P31", *_BOGUS),
    _linux(0x144D, 0xA80B, "Samsung PM9B1", *_BOGUS),
    _linux(0x144D, 0xA802, "Samsung SM953", *_BOGUS),
    _linux(0x1F40, 0x1202, "Netac NV3000", *_BOGUS),
    _linux(0x1F40, 0x5236, "Netac NV7000", *_BOGUS),
    _linux(0x1E4B, 0x1001, "MAXIO MAP1001", *_BOGUS),
    _linux(0x1E4B, 0x1002, "MAXIO MAP1002", *_BOGUS),
    _linux(0x1E4B, 0x1202, "MAXIO MAP1202", *_BOGUS),
    _linux(0x1E4B, 0x1602, "MAXIO MAP1602", *_BOGUS),
    _linux(0x1CC1, 0x5350, "ADATA XPG GAMMIX S50", *_BOGUS),
    _linux(0x1DBE, 0x5216, "INNOGRIT 5216", *_BOGUS),
    _linux(0x1DBE, 0x5236, "ADATA XPG GAMMIX S70", *_BOGUS),
    _linux(0xC0A9, 0x540A, "Crucial P2", *_BOGUS),
    _linux(0x1D97, 0x2263, "Lexar NM610", *_BOGUS),
    _linux(0x1D97, 0x1D97, "Lexar NM620", *_BOGUS),
    _linux(0x1D97, 0x2269, "Lexar NM760", *_BOGUS),
)


@attrs.frozen
class Quirks:
    """The quirks of one device. reasons: {quirk: its source}."""

    reasons: Mapping[Quirk, str] = attrs.field(factory=dict)

    def names(self) -> str:
        """As an override that gives exactly these."""
        return ",".join(sorted(self.reasons)) or "none"

    def __contains__(self, quirk: Quirk) -> bool:
        return quirk in self.reasons

    def inspect(self) -> dict[str, str]:
        return {str(quirk): reason for quirk, reason in sorted(self.reasons.items())}


NO_QUIRKS = Quirks()

_command_line = ""


@contextmanager
def with_command_line(text: str) -> Iterator[None]:
    """`text` is the command line's override until the end of the block, in all threads.
    ConfigurationError if it is none.
    """
    global _command_line
    for _, override in _parts(text, COMMAND_LINE) if "=" in text else [("*", text)]:
        check(override)
    before, _command_line = _command_line, text
    try:
        yield
    finally:
        _command_line = before


def check(text: str) -> str:
    """`text` if it is an override as described above; ConfigurationError names what isn't."""
    for word in _words(text):
        name = word.lstrip("+-") if word[0] in "+-" else word
        if name not in (*Quirk, "none"):
            raise ConfigurationError(f"quirks={text!r}: unknown quirk {name!r}; the quirks are {', '.join(Quirk)}")
        if name == "none" and _words(text) != ["none"]:
            raise ConfigurationError(f"quirks={text!r}: none must be the only one")
    if len({word[0] in "+-" for word in _words(text)}) > 1:
        raise ConfigurationError(f"quirks={text!r}: give either names, or +names and -names")
    return text


def quirks_of(
    ids: DeviceIds,
    *,
    model: str = "",
    firmware: str = "",
    override: str = "",
    owner: str = "",
    environment: Mapping[str, str] | None = None,
    table: Iterable[Entry] = TABLE,
) -> Quirks:
    """The quirks of a device. override: the option, "" for none. owner: the quirks that the process
    which shares the device has found, "" if there is none.

    Raises ConfigurationError for an invalid override or environment variable.
    """
    reasons = {
        quirk: f"{entry.name} ({entry.source})"
        for entry in table
        if entry.matches(ids, model, firmware)
        for quirk in entry.quirks
    }
    if override:
        return Quirks(_overridden(reasons, override, "the option quirks="))
    if owner:
        return Quirks(_overridden(reasons, owner, "the process that shares it"))
    if _command_line and "=" not in _command_line:
        return Quirks(_overridden(reasons, _command_line, COMMAND_LINE))
    variable = (os.environ if environment is None else environment).get(VARIABLE, "")
    for where, text in ((COMMAND_LINE, _command_line), (VARIABLE, variable)):
        for which, own in _parts(text, where):
            if _is_for(which, ids, where):
                return Quirks(_overridden(reasons, own, where))
    return Quirks(reasons)


def _parts(text: str, where: str) -> Iterator[tuple[str, str]]:
    """(which devices, their override), in order. where: what `text` is, for the errors."""
    for part in filter(None, (part.strip() for part in text.split(";"))):
        which, equals, override = part.partition("=")
        if not equals:
            raise ConfigurationError(f"{where}: {part!r} is not of the form vvvv:dddd=quirks")
        _numbers(which.strip(), where)
        yield which.strip(), override.strip()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _overridden(reasons: dict[Quirk, str], text: str, by: str) -> dict[Quirk, str]:
    words = _words(check(text))
    if not words or words[0][0] not in "+-":
        return {Quirk(word): by for word in words if word != "none"}
    taken = {word[1:] for word in words if word[0] == "-"}
    added = {Quirk(word[1:]): by for word in words if word[0] == "+"}
    return {**{quirk: reason for quirk, reason in reasons.items() if quirk not in taken}, **added}


def _numbers(which: str, where: str) -> list[int]:
    """The PCI ids that `which` names; none for any device."""
    if which == "*":
        return []
    try:
        numbers = [int(number, 16) for number in which.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 4):
        raise ConfigurationError(f"{where}: {which!r} is neither *, vvvv:dddd nor vvvv:dddd:ssss:ssss")
    return numbers


def _is_for(which: str, ids: DeviceIds, where: str) -> bool:
    numbers = _numbers(which, where)
    known = [ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem]
    return numbers == known[: len(numbers)]
