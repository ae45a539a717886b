"""The options of opening a controller."""

from __future__ import annotations

import ipaddress
import math
import uuid
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import attrs

from nvme_async.device import quirks
from nvme_async.errors import ConfigurationError
from nvme_async.spec.registers import PAGE

Mode = Literal["adaptive", "interrupt", "poll", "hybrid"]
MODES: tuple[Mode, ...] = ("adaptive", "interrupt", "poll", "hybrid")
Engine = Literal["auto", "io_uring", "threads"]
ENGINES: tuple[Engine, ...] = ("auto", "io_uring", "threads")
Direct = Literal["auto", "always", "never"]
IoPolicy = Literal["round-robin", "queue-depth"]
IO_POLICIES: tuple[IoPolicy, ...] = ("round-robin", "queue-depth")
DIRECT: tuple[Direct, ...] = ("auto", "always", "never")


def mode_of(text: str) -> Mode:
    """`text` as a mode; ConfigurationError for another word."""
    for mode in MODES:
        if mode == text:
            return mode
    raise ConfigurationError(f"mode is {text!r}, not one of {', '.join(MODES)}")


DEFAULT_POOL = 32 << 20


def _between(low: float, high: float) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise ConfigurationError(f"{attribute.name} is {value}, must be {low} to {high}")

    return check


def _limit(high: float) -> Any:
    """A number of seconds; 0 means no limit. Other drivers use a maximum number for that
    (nvme_core.io_timeout=4294967295); the message explains this.
    """

    def check(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not 0 <= value <= high:
            raise ConfigurationError(f"{attribute.name} is {value}, must be 0 to {high}; 0 means no limit")

    return check


def _one_of(*allowed: str) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in allowed:
            raise ConfigurationError(f"{attribute.name} is {value!r}, not one of {', '.join(allowed)}")

    return check


def _pages(_: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if value <= 0 or value % PAGE:
        raise ConfigurationError(f"{attribute.name} is {value}, not a positive multiple of {PAGE} bytes")


def _block_size(_: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if value and (not 512 <= value <= 65536 or value & (value - 1)):
        raise ConfigurationError(f"{attribute.name} is {value}, not a power of two from 512 to 65536 bytes")


def _uuid(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    try:
        known = not value or uuid.UUID(value).int != 0
    except ValueError:
        raise ConfigurationError(f"{attribute.name} is {value!r}, must be a UUID") from None
    if not known:
        raise ConfigurationError(f"{attribute.name} is all zeroes, which does not identify a host")


def _loss(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if value != -1 and not 0 <= value <= 86400:
        raise ConfigurationError(f"{attribute.name} is {value}, must be 0 to 86400; -1 means no limit")


def _ip_address(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    try:
        if value:
            ipaddress.ip_address(value)
    except ValueError:
        raise ConfigurationError(f"{attribute.name} is {value!r}, not an IP address of this host") from None


def _interface(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if len(value.encode()) > 15 or "/" in value or not value.isprintable():
        raise ConfigurationError(f"{attribute.name} is {value!r}, not the name of a network interface")


def _quirks(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    quirks.check(value)


@attrs.frozen(kw_only=True)
class Options:
    """How a controller is driven.

    Attributes:
        mode: how completions are waited for. "adaptive" polls for a bounded time, then sleeps on
            the interrupt; "interrupt" only sleeps; "poll" polls in each event-loop iteration and
            never sleeps while commands are in flight. "hybrid" is adaptive, but a lone command
            whose time is steady is slept for until shortly before its completion is expected, and
            then polled for: nearly the latency of polling, and a timer for each such command.
        spin_us: longest poll for a completion in adaptive and hybrid mode, in microseconds, by a
            lone command or by the last of several to be sent; 0 is a single poll. The limit adapts:
            if twice the recent wait is shorter, that is the limit; if it is longer, the driver does
            not poll. None: 20, or twice the time that waking up was measured to take on this
            machine, if that is longer (50 at most).
        io_queues: most I/O queue pairs, one per event loop that uses the controller.
        queue_entries: of an I/O queue, 2 to 4096; never more than the controller has (CAP.MQES).
        admin_entries: of the admin queue, 2 to 4096.
        max_transfer: bytes of one command; never more than the controller allows (MDTS).
        pool_bytes: first size of the memory that the controller can access; it grows by as much
            when
            it is full. The default is reduced if limits require it (the log and inspect() report
            it).
        memory_limit: maximum of that memory in bytes, in total. None: half of the machine's memory,
            or of the process's control groups' limit. In any case no more is taken than is
            available at the time.
        host_memory: most bytes of the Host Memory Buffer for a controller that asks for one; 0:
            none. None: the controller's minimum (HMMIN), up to 128 MiB, or what it prefers (HMPRE)
            where it has no minimum. With keepalive it comes out of the pool, of which half stays
            free.
        cmb_queues: which I/O queues are in the Controller Memory Buffer, where the controller
            allows it (CMBSZ.SQS, CQS): "submission", or "all", completion queues too. The
            controller then reads commands without a transfer over the bus, but each command costs
            the processor uncached stores, and each poll of a completion queue there an uncached
            read, which is why it is "off" by default.
        apst_latency_us: microseconds that the way out of a non-operational power state may take:
            autonomous transitions to such states are set as Linux does (100000 there); 0 disables
            them. None: they are as the controller has them.
        hugepages: "auto", "never" or "require", for that memory.
        numa: "split": each pool is spread evenly over the NUMA nodes that have memory, in order; ""
            = the kernel decides.
        always_flr: a function level reset whenever the device is opened, if it supports that. Not
            at a live restore.
        fused: all I/O queue pairs are made at the bring-up, event loops take them from there, and
            after it no admin command is sent (AdminRefused), no Asynchronous Event Request either.
            None: with keepalive, where the quirk keepalive-by-class asks for it.
        command_timeout: seconds for an I/O command before it is aborted and, failing that, the
            controller reset. 0 = no limit.
        admin_timeout: the same for admin commands. 0 applies to the application's commands; the
            driver's own then have 60 s.
        abort_timeout: seconds for an Abort to help, before the controller is reset.
        drain_timeout: seconds that close() waits for commands in flight.
        shutdown_timeout: seconds for CSTS.SHST after CC.SHN; None: the controller's value
            (RTD3E), 5 to 60.
        open_timeout: seconds for open() from the device to the last namespace; then
            ControllerTimeout names the current step. 0 = no limit except those of the single steps.
        device_timeout: seconds for the answer to one register access, or other call, of a device
            that is accessed by messages (vfio-user).
        shadow_doorbells: use Doorbell Buffer Config if the controller offers it.
        latency: record a latency histogram for each I/O queue pair (fio's buckets; in inspect()).
        keepalive: keep everything that a successor needs in one private pool of fixed size
            (pool_bytes), so that another process can take the running controller over. Memory
            beyond the pool is then refused (OutOfDmaMemory).
        retries: how often a command is sent again, after a reset of the controller or a delay that
            the controller asks for (CRD), before it fails.
        hostnqn, hostid: this host's identity for an NVMe/TCP controller, a name and a UUID; empty:
            from
            /etc/nvme/hostnqn and /etc/nvme/hostid. A PCI function gets a hostid that is given here
            (feature 81h), so that reservations recognize this host on each of its controllers.
        hdr_digest, data_digest: CRC32C over headers and over data of NVMe/TCP, if the controller
            agrees.
        dhchap_secret, dhchap_ctrl_secret: DH-HMAC-CHAP, "DHHC-1:HH:BASE64:": the secret that this
            host proves to an NVMe/TCP controller on request, and the one that the controller must
            prove.
        tls: NVMe/TCP over TLS 1.3 with a pre-shared key. Needs Python 3.13 or newer and tls_key.
        tls_key: that key, "NVMeTLSkey-1:HH:BASE64:", or the path of a file with it. 32 bytes: keys
            for SHA-384 are refused.
        tls_identity: version of the PSK identity: 1, or 0 for a controller that knows only the one
            of TCP Transport 1.0 (SPDK's).
        keep_alive_tmo: seconds without a Keep Alive after which an NVMe/TCP association ends, for
            both sides. 0 = never.
        pcie_keep_alive_tmo: the same for a PCI function, which otherwise waits for ever for a host
            that has stopped; then it ends with a fatal status, and the next driver resets it.
            0 = never, as there is no need of it with a driver that ends with its process.
        connect_timeout: seconds for one NVMe/TCP connection.
        busy_poll: microseconds for which a read of an NVMe/TCP socket polls the network device
            (SO_BUSY_POLL); 0: as the system has it (net.core.busy_read).
        reconnect_delay: longest pause between two attempts to reach a lost NVMe/TCP controller, in
            seconds.
        ctrl_loss_tmo: seconds to wait for a lost NVMe/TCP controller before it has failed; -1: no
            limit.
        host_traddr, host_iface: the address of this host, and its network interface, that NVMe/TCP
            connections are made from; empty: as the system routes them.
        iopolicy: how one of several paths in the same ANA state is chosen: "round-robin", or
            "queue-depth", the one with the fewest commands in flight.
        engine: how the commands of a kernel: or file: device get to the kernel: "io_uring",
            "threads"
            or "auto", io_uring where it may be used.
        direct: O_DIRECT for a file: or a block device of kernel:, past the page cache: "auto"
            (where the file system has it), "always" or "never".
        io_poll: completions of a kernel: or file: device are polled for in the kernel
            (IORING_SETUP_IOPOLL); needs mode "poll", and queues for it (nvme.poll_queues).
        block_size: bytes of a block of a file:, a power of two from 512; 0: what suits the file.
        read_only: a kernel: or file: device is opened for reading alone.
        allow_mounted_write: a kernel: or file: device that is mounted, or used in another way, may
            be written. Its user does not know of it: this destroys file systems.
        quirks: overrides the table of quirks for this device (device/quirks.py): "none", names, or
            "+name" and "-name" to add and remove.
    """

    mode: Mode = attrs.field(default="adaptive", validator=_one_of(*MODES))
    spin_us: float | None = attrs.field(default=None, validator=attrs.validators.optional(_between(0, 1000)))
    io_queues: int = attrs.field(default=16, validator=_between(1, 65535))
    queue_entries: int = attrs.field(default=256, validator=_between(2, 4096))
    admin_entries: int = attrs.field(default=64, validator=_between(2, 4096))
    max_transfer: int = attrs.field(default=1 << 20, validator=[_pages, _between(PAGE, 16 << 20)])
    pool_bytes: int = attrs.field(default=DEFAULT_POOL, validator=_pages)
    memory_limit: int | None = attrs.field(default=None, validator=attrs.validators.optional(_pages))
    host_memory: int | None = attrs.field(default=None, validator=attrs.validators.optional(_between(0, 1 << 40)))
    cmb_queues: Literal["off", "submission", "all"] = attrs.field(
        default="off", validator=_one_of("off", "submission", "all")
    )
    apst_latency_us: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_between(0, (1 << 32) - 1))
    )
    hugepages: Literal["auto", "never", "require"] = attrs.field(
        default="auto", validator=_one_of("auto", "never", "require")
    )
    numa: Literal["", "split"] = attrs.field(default="", validator=_one_of("", "split"))
    always_flr: bool = False
    fused: bool | None = None
    command_timeout: float = attrs.field(default=30.0, validator=_limit(86400))
    admin_timeout: float = attrs.field(default=60.0, validator=_limit(86400))
    abort_timeout: float = attrs.field(default=5.0, validator=_between(0.01, 3600))
    drain_timeout: float = attrs.field(default=5.0, validator=_between(0, 3600))
    shutdown_timeout: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_between(0.01, 3600))
    )
    open_timeout: float = attrs.field(default=300.0, validator=_limit(86400))
    device_timeout: float = attrs.field(default=10.0, validator=_between(0.01, 3600))
    shadow_doorbells: bool = True
    latency: bool = False
    keepalive: bool = False
    retries: int = attrs.field(default=3, validator=_between(0, 100))
    hostnqn: str = ""
    hostid: str = attrs.field(default="", validator=_uuid)
    hdr_digest: bool = False
    data_digest: bool = False
    dhchap_secret: str = attrs.field(default="", repr=False)
    dhchap_ctrl_secret: str = attrs.field(default="", repr=False)
    tls: bool = False
    tls_key: str = attrs.field(default="", repr=False)
    tls_identity: int = attrs.field(default=1, validator=_between(0, 1))
    keep_alive_tmo: float = attrs.field(default=15.0, validator=_limit(86400))
    pcie_keep_alive_tmo: float = attrs.field(default=0.0, validator=_limit(86400))
    connect_timeout: float = attrs.field(default=5.0, validator=_between(0.01, 3600))
    busy_poll: int = attrs.field(default=0, validator=_between(0, 1_000_000))
    reconnect_delay: float = attrs.field(default=2.0, validator=_between(0.01, 3600))
    ctrl_loss_tmo: float = attrs.field(default=600.0, validator=_loss)
    host_traddr: str = attrs.field(default="", validator=_ip_address)
    host_iface: str = attrs.field(default="", validator=_interface)
    iopolicy: IoPolicy = attrs.field(default="round-robin", validator=_one_of(*IO_POLICIES))
    engine: Engine = attrs.field(default="auto", validator=_one_of(*ENGINES))
    direct: Direct = attrs.field(default="auto", validator=_one_of(*DIRECT))
    io_poll: bool = False
    block_size: int = attrs.field(default=0, validator=_block_size)
    read_only: bool = False
    allow_mounted_write: bool = False
    quirks: str = attrs.field(default="", validator=_quirks)

    @property
    def loss_limit(self) -> float:
        """ctrl_loss_tmo as a number of seconds."""
        return math.inf if self.ctrl_loss_tmo < 0 else self.ctrl_loss_tmo

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """From keyword arguments; ConfigurationError names an unknown one."""
        known = {field.name for field in attrs.fields(cls)}
        for name in options:
            if name not in known:
                raise ConfigurationError(f"unknown option {name!r}; the options are {', '.join(sorted(known))}")
        return cls(**options)


class DriverOptions(TypedDict, total=False):
    """The keyword arguments that become Options; `keepalive` and `always_flr` are separate
    arguments wherever these are accepted.
    """

    mode: Mode
    spin_us: float | None
    io_queues: int
    queue_entries: int
    admin_entries: int
    max_transfer: int
    pool_bytes: int
    memory_limit: int | None
    host_memory: int | None
    cmb_queues: Literal["off", "submission", "all"]
    apst_latency_us: int | None
    hugepages: Literal["auto", "never", "require"]
    numa: Literal["", "split"]
    command_timeout: float
    admin_timeout: float
    abort_timeout: float
    drain_timeout: float
    shutdown_timeout: float | None
    open_timeout: float
    device_timeout: float
    shadow_doorbells: bool
    latency: bool
    retries: int
    hostnqn: str
    hostid: str
    hdr_digest: bool
    data_digest: bool
    dhchap_secret: str
    dhchap_ctrl_secret: str
    tls: bool
    tls_key: str
    tls_identity: int
    keep_alive_tmo: float
    pcie_keep_alive_tmo: float
    connect_timeout: float
    reconnect_delay: float
    ctrl_loss_tmo: float
    host_traddr: str
    host_iface: str
    iopolicy: IoPolicy
    busy_poll: int
    engine: Engine
    direct: Direct
    io_poll: bool
    block_size: int
    read_only: bool
    allow_mounted_write: bool
    quirks: str
    fused: bool | None


class TakeOverOptions(DriverOptions, total=False):
    """The keyword arguments of nvme_async.take_over() and nvme_async.keepalive.restore()."""

    keepalive: bool
    always_flr: bool
