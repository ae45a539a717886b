"""The transport of drives and files that the kernel drives: io_uring, or threads if that may not
be used.

Nothing of the kernel's is reset or configured. A reset of this driver waits until the kernel has
returned every command, and then resends those that may be resent. Until then no memory of a command
is used for anything else.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from nvme_async.dma import DmaBuffer
from nvme_async.driver.kernel import engine, nodes
from nvme_async.driver.kernel.address import Address, is_controller, parse_address
from nvme_async.driver.kernel.admin import Backend, Emulated, Passed
from nvme_async.driver.kernel.emulation import VERSION
from nvme_async.driver.kernel.memory import KernelMemory, KernelRegistration
from nvme_async.driver.kernel.nodes import Node
from nvme_async.driver.kernel.queues import QUIET_SECONDS, KernelQueue, KernelQueueSet
from nvme_async.driver.options import Options
from nvme_async.driver.queues.queue_transport import QueueTransport
from nvme_async.driver.recovery import RETRYABLE
from nvme_async.driver.steps import Degraded, Step
from nvme_async.driver.transport import Owner, Transport
from nvme_async.errors import (
    ConfigurationError,
    ControllerError,
    ControllerGone,
    ControllerTimeout,
    NvmeError,
)
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.registers import Cap, Vs

log: logging.Logger = logging.getLogger("nvme_async")

_ENTRIES = 4095  # CAP.MQES, zero-based; and the NVM command set
_CAP = Cap.from_int(_ENTRIES | 1 << 37)


class KernelTransport(QueueTransport):
    """Attributes:
    address: the opened URI. nodes: of its namespaces, by nsid. identified: their Identify pages.
    backend: answers admin commands. why_threads: why io_uring is not used; empty: it is.
    """

    has_events = False
    configured = False
    queues: KernelQueueSet

    def __init__(self, address: Address, options: Options) -> None:
        self.kind: str = address.scheme
        self.address = address
        self.uri: str = str(address)
        self.cap = _CAP
        self.nodes: dict[int, Node] = {}
        self.identified: dict[int, IdentifyNamespace] = {}
        self.why_threads: str = ""
        options = address.applied(options)
        self.options: Options = options
        self.memory: KernelMemory = KernelMemory(self.uri, options, on_region=self._region, on_gone=self._region_gone)
        self._controller: Node | None = None
        self._all_of = ""  # the controller's node, if all its namespaces are served
        self._retired: list[Node] = []
        self._trouble: str | None = None
        self._on_gone: Callable[[], None] | None = None

    def attach(self, owner: Owner) -> None:
        if owner.options.keepalive:
            raise ConfigurationError(
                f"{self.uri}: keepalive needs a PCI function; the kernel keeps this drive, and a "
                "successor can open it while this process has it open"
            )
        owner.options = self.options
        self.owner = owner
        self.queues = KernelQueueSet(owner, self)

    # -- bring-up and reset ------------------------------------------------------------------------

    def open_steps(self) -> Sequence[Step]:
        return [Step("the kernel's node", lambda: in_thread(self._open), repeatable=False)]

    def connect_steps(self, degraded: Degraded, error: NvmeError) -> Sequence[Step]:
        return [Step("commands with the kernel", lambda: self._begin(error), repeatable=False)]

    def queue_steps(self, degraded: Degraded, lost: set[str]) -> Sequence[Step]:
        return [
            Step("number of queues", self.queues.begin),
            Step("I/O queues", lambda: self.queues.create_all(degraded)),
        ]

    def _open(self) -> None:
        address, options = self.address, self.options
        if address.scheme == "file":
            node = nodes.open_file(address.path, options)
            self.nodes[node.nsid] = node
            self.backend: Backend = Emulated(node)
            self.vs: Vs = Vs.from_int(VERSION)
        else:
            self._open_kernel(address.node())
        if options.io_poll:
            for node in self.nodes.values():
                if node.kind != "passthrough" and not node.direct:
                    raise ConfigurationError(
                        f"{self.uri}: io_poll needs direct I/O, which {node.path} does not support"
                    )
        passthrough = any(node.kind == "passthrough" for node in self.nodes.values())
        self.why_threads = engine.choose(options, passthrough=passthrough)
        if self.why_threads and options.engine == "auto":
            log.warning("%s: %s; threads are used instead", self.uri, self.why_threads)

    def _open_kernel(self, path: str) -> None:
        if is_controller(path):
            controller = self._all_of = path
            self._search_all()
        else:
            node = self._open_node(path)
            self.nodes[node.nsid] = node
            controller = nodes.controller_of(path)
        self._controller = nodes.open_controller(controller)
        passed = Passed(self._controller, self.nodes, self._search, self.options.admin_timeout)
        self.backend = passed
        self.vs = passed.version()

    def _open_node(self, path: str) -> Node:
        if os.path.basename(path).startswith("ng"):
            return nodes.open_passthrough(path, self.options)
        node = nodes.open_file(path, self.options, kind="nvme-block")
        node.nsid = nodes.nsid_of(node)
        return node

    def _search(self) -> None:
        """Namespaces may have been added. From a thread."""
        if self._all_of:
            self._search_all()

    def _search_all(self) -> None:
        known = {node.path for node in self.nodes.values()}
        for path in nodes.namespace_nodes(self._all_of):
            if path in known:
                continue
            try:
                node = self._open_node(path)
            except (ControllerError, ConfigurationError) as error:
                log.warning("%s: a namespace is omitted: %s", self.uri, error)
                continue
            if before := self.nodes.get(node.nsid):
                self._retired.append(before)
            self.nodes[node.nsid] = node

    async def _begin(self, error: NvmeError) -> None:
        if self.queues.has_admin:
            if left := await self.queues.quiet(QUIET_SECONDS):
                raise ControllerTimeout(
                    f"{self.uri}: the kernel has not returned the commands of {len(left)} queues within "
                    f"{QUIET_SECONDS:g} s"
                )
            await self.queues.restart(RETRYABLE, error)
        self.queues.prepare_admin().silence(False)

    def without_ring(self, error: OSError) -> None:
        """One queue more can't have an io_uring: the memory of rings counts as locked, for all
        of a user's processes together.
        """
        limit = " (the limit of locked memory, `ulimit -l`)" if error.errno == errno.ENOMEM else ""
        reason = f"no io_uring for one queue more: {error.strerror}{limit}"
        self.owner.degraded.add("io_uring", reason, "threads are used instead")

    async def learn(self, nsid: int, page: bytes) -> None:
        """A namespace was identified: its format and size apply to commands from now on."""
        identify = IdentifyNamespace.decode(page)
        if not identify.active or nsid not in self.nodes:
            return
        self.identified[nsid] = identify
        maker = self.queues.maker

        def update(queue: Any) -> None:
            if isinstance(queue, KernelQueue) and not queue.closed:
                maker.set_targets(queue)  # type: ignore[attr-defined]

        await self.queues.on_each(update, admin=False)

    # -- memory ------------------------------------------------------------------------------------

    def alloc(self, nbytes: int, *, tag: int = 0) -> DmaBuffer:
        return self.memory.alloc(nbytes, tag=tag)

    def register(self, buffer: Any) -> KernelRegistration:
        return self.memory.register(buffer)

    def _on_links(self, what: Callable[[KernelQueue], None]) -> None:
        """what(queue) in the thread of each queue's loop, soon. From any thread."""
        for queue in self.queues.with_commands():
            if isinstance(queue, KernelQueue) and not queue.loop.is_closed():
                queue.loop.call_soon_threadsafe(what, queue)

    def _region(self, address: int, nbytes: int, iova: int) -> None:
        self._on_links(lambda queue: queue.add_region(address, nbytes, iova))

    def _region_gone(self, address: int) -> None:
        self._on_links(lambda queue: queue.drop_region(address))

    def limit_transfer(self, mdts: int) -> bool:
        limit = self.options.max_transfer
        for node in self.nodes.values():
            if node.kind == "passthrough":
                limit = min(limit, mdts or limit, nodes.most_bytes(nodes.block_name(node.path)) or 128 << 10)
        return self.queues.maker.limit_transfer(limit)

    # -- health ------------------------------------------------------------------------------------

    def gone(self, reason: str) -> None:
        """From any thread: the kernel no longer has this device."""
        if self._trouble is None:
            self._trouble = f"the device is gone: {reason}"
            if not self.owner.loop.is_closed():
                self.owner.loop.call_soon_threadsafe(self._report_loss)

    def _report_loss(self) -> None:
        callback, self._on_gone = self._on_gone, None
        if callback is not None:
            callback()

    @property
    def trouble(self) -> str | None:
        return self._trouble

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        self._on_gone = on_gone

    async def lost(self) -> str:
        return await in_thread(self._lost)

    def _lost(self) -> str:
        if self._trouble is not None:
            raise ControllerGone(f"{self.uri}: {self._trouble}")
        controller = self._controller
        if controller is None:
            return ""
        state = nodes.controller_state(controller.path)
        if state in ("", "dead", "deleting", "deleting (no IO)"):
            raise ControllerGone(f"{self.uri}: {controller.path} is {state or 'gone'}")
        return ""

    async def has_failed(self) -> bool:
        await self.lost()
        return False

    # -- the end -----------------------------------------------------------------------------------

    async def shut_down(self, seconds: float) -> None:
        """The drive belongs to the kernel, and continues."""

    async def release(self, reason: NvmeError, *, keep: bool = False) -> Transport | None:
        for queue in await self.queues.quiet(QUIET_SECONDS):
            log.error(
                "%s: the kernel has not returned the commands of queue %d within %g s; their memory is never reused",
                self.uri,
                queue.qid,
                QUIET_SECONDS,
            )
            await self.owner._on_owner(queue, lambda queue=queue: _end_waits(queue, reason))  # type: ignore[misc]
            self.queues.leave(queue, dict(self.nodes))
            self.nodes.clear()
        await self.queues.release(reason)
        self._close_nodes()
        self.memory.close()
        return None

    async def cut_off(self) -> None:
        """Nothing can be cut off: release() waits for the kernel, with a limit."""

    def _close_nodes(self) -> None:
        for node in [*self.nodes.values(), *self._retired]:
            node.close()
        self.nodes.clear()
        self._retired.clear()
        if self._controller is not None:
            self._controller.close()

    def drop(self) -> None:
        for queue in [*self.queues.io_queues(), *self.queues.unsettled]:
            if isinstance(queue, KernelQueue) and not queue.quiet_now(1.0):
                self.queues.leave(queue, dict(self.nodes))
                self.nodes.clear()
        self._close_nodes()

    def abandon(self) -> None:
        self._close_nodes()

    def inspect(self) -> dict[str, Any]:
        return {
            **self.queues.inspect(),
            "memory": {"pools": [pool.inspect() for pool in self.memory.pools], "regions": len(self.memory.regions)},
            "engine": f"threads ({self.why_threads})" if self.why_threads else "io_uring",
            "nodes": {
                nsid: {
                    "path": node.path,
                    "kind": node.kind,
                    "direct": node.direct,
                    "read_only": node.read_only,
                    "notes": list(node.notes),
                }
                for nsid, node in sorted(self.nodes.items())
            },
        }


def _end_waits(queue: Any, reason: NvmeError) -> None:
    queue.hot.refuse(reason)
    queue.hot.silence(True)
    queue.hot.fail_waiters(reason)
    queue.stop_listening()


def parse(rest: str) -> str:
    """The canonical form of what follows "kernel:"."""
    return str(parse_address("kernel", rest)).partition(":")[2]


def location(rest: str) -> tuple[object, ...]:
    """Of the node that it leads to."""
    return parse_address("kernel", rest).location()


async def open_transport(uri: str, options: Options) -> KernelTransport:
    """The node is opened by the first step of the bring-up."""
    scheme, _, rest = uri.partition(":")
    return KernelTransport(parse_address(scheme.lower(), rest), options)
