"""The manager itself: from a device's address to a handle, and everything at once."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import attrs

from nvme_async.driver.options import Options
from nvme_async.driver.tcp.discovery import discover_subsystems
from nvme_async.errors import ConfigurationError, NvmeError, QueueShutdown
from nvme_async.keepalive import Bundle
from nvme_async.keepalive.opening import OpenOptions, ServiceOptions
from nvme_async.manager.control import ControlServer
from nvme_async.manager.device import ManagedDevice
from nvme_async.manager.events import Events, ManagerEvent, Subscription
from nvme_async.manager.handles import ManagedNamespace
from nvme_async.manager.hotplug import HotplugWatch
from nvme_async.manager.registry import Registry, canonical
from nvme_async.manager.servicing import SavedDevices
from nvme_async.manager.settings import HotPlug, ManagerOptions, Policy, split
from nvme_async.manager.sharing import ManagerShare
from nvme_async.manager.workers import EventLoop, Pin, Worker, Workers
from nvme_async.runtime import forks
from nvme_async.runtime.tasks import finish

log: logging.Logger = logging.getLogger("nvme_async")
T = TypeVar("T")

# Limit for the worker threads to end, when all devices are closed.
JOIN_SECONDS = 5.0


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ConfigurationError(f"{name} is {value}, not a positive number of seconds")
    return value


class Manager:
    """Drives many devices. `async with Manager() as manager`, or `with` from a plain thread; see
    the package for threads and locks.

    workers: how many threads controllers live on; by default 4, or the number of CPUs if that is
        less. They start when they are needed.
    event_loop: "uvloop" or "asyncio", of the workers.
    pin: None: workers run anywhere. "numa": one worker for each NUMA node (or `workers`, spread
        over them), on its CPUs, and PCI devices on a worker of their node. Or for each worker a
        list of CPU numbers.
    wait_limit: seconds that a call waits while its device is serviced, before it fails with
        ControllerTimeout.
    close_limit: seconds for a controller's orderly shutdown, before its device is taken from it.
    repairs: how often within a minute a failed controller (not a missing one) gets a new
        driver by itself; 0 = never.
    hotplug: "off": a missing device is not reloaded. "reload": it is loaded again when it is back.
        "all": so is any NVMe function that is bound to vfio-pci later (needs pyudev:
        nvme_async[hotplug]).
    control: a Unix socket to offer, for `nvme-async inspect` and `top` (control.py); only this user
        may open it.
    options: defaults for all devices, see nvme_async.Options, and keepalive, pool_pages, vfio,
        keeper and keeper_wait as for nvme_async.open(): missing ones come from the command line or
        the environment, or are inferred. load() may override them for one device.

    Every method may be called from any thread. Those of a manager that is closed raise
    QueueShutdown.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        event_loop: EventLoop = "uvloop",
        pin: Pin = None,
        wait_limit: float = 30.0,
        close_limit: float = 15.0,
        repairs: int = 3,
        hotplug: HotPlug = "reload",
        control: str | os.PathLike[str] | None = None,
        **options: Unpack[OpenOptions],
    ) -> None:
        if hotplug not in ("off", "reload", "all"):
            raise ConfigurationError(f"hotplug is {hotplug!r}, not one of off, reload, all")
        if not 0 <= repairs <= 1000:
            raise ConfigurationError(f"repairs is {repairs}, must be 0 to 1000")
        split(options)
        self._options: dict[str, Any] = {**options}
        self._policy = Policy(
            wait_limit=_positive("wait_limit", wait_limit),
            close_limit=_positive("close_limit", close_limit),
            repairs=repairs,
            reload=hotplug != "off",
        )
        self._workers = Workers(workers, event_loop, pin)
        self._registry = Registry()
        self._events = Events()
        self._own_worker = threading.local()
        self._closed = threading.Event()
        self._loading: list[asyncio.Task[None]] = []  # hot-plug tasks; asyncio keeps no reference
        self._sharing: ManagerShare | None = None
        self._began = time.time()
        # Steps that may fail come first; threads start last.
        self._hotplug = HotplugWatch(self._appeared) if hotplug == "all" else None
        self._control = ControlServer(self, os.fspath(control)) if control is not None else None
        for service in (self._hotplug, self._control):
            if service is not None:
                service.start(self._workers.any())
        forks.watch(self)

    # -- lifecycle

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run(self.close())

    async def close(self) -> None:
        """Shuts down all devices at the same time and ends the workers. New calls are refused
        from now on; running calls get the controllers' drain_timeout.

        A device that doesn't end within twice close_limit is abandoned; it doesn't delay the
        others. Not from a worker's loop. Runs to its end also if the caller is cancelled; a second
        call waits for the first.
        """
        if any(worker.current for worker in self._workers.running()):
            raise RuntimeError(
                "a manager can't be closed from one of its own worker threads, which would have to end first"
            )
        await finish(self._close)

    async def _close(self) -> None:
        first = not self._registry.closed
        devices = self._registry.shut()
        if not first:
            await asyncio.to_thread(self._closed.wait, 4 * self._policy.close_limit + JOIN_SECONDS)
            return
        try:
            reason = QueueShutdown("the manager is closed")
            if self._hotplug is not None:
                await self._hotplug.close()
            ends = [asyncio.wrap_future(device.worker.submit(device._shut_down(reason))) for device in devices.values()]
            if ends:
                await asyncio.wait(ends, timeout=4 * self._policy.close_limit)
            for end in ends:
                if end.done() and not end.cancelled():
                    end.exception()  # it was logged where it happened
            self._events.end()
            if self._control is not None:
                await self._control.close()
            await asyncio.to_thread(self._workers.stop, JOIN_SECONDS)
        finally:
            self._closed.set()

    def forget_in_child(self) -> None:
        """In a forked child: the workers are threads of the parent."""
        reason = forks.belongs_to_parent("the manager")
        for device in self._registry.forget_in_child(str(reason)).values():
            device.forget_in_child(reason)
        self._closed = threading.Event()
        self._closed.set()

    # -- devices -----------------------------------------------------------------------------------

    async def load(self, uri: str, **options: Unpack[OpenOptions]) -> ManagedDevice:
        """The device with a driver: opened, or found open. Several callers at once share one
        driver, and one failure.

        The device of another spelling of its address is the same: another path to a file, an
        address of a host in another form. It keeps the URI that it has.

        options: those that differ from the manager's. ConfigurationError if it is loaded with
            others already. A failed load leaves nothing behind.
        """
        key = canonical(uri)
        device = self._find(key, {**self._options, **options})
        asked, has = key.partition("?")[2], device.uri.partition("?")[2]
        if asked != has or {**device.options, **options} != device.options:
            raise ConfigurationError(f"{device.uri} is already loaded with other options")
        await device.load()
        return device

    async def connect_all(self, uri: str, **options: Unpack[OpenOptions]) -> list[ManagedDevice]:
        """Loads every NVM subsystem that the NVMe/TCP discovery service at `uri`
        ("tcp:192.0.2.7:8009") knows, each with all its addresses as paths.

        options: as for load(), of those that are not loaded yet. One that can't be loaded is
            logged, published as "device-failed" and left out; its error is raised if none can.
            Errors of discovery: as discover().
        """
        wanted = {**self._options, **options}
        known = {field.name for field in attrs.fields(Options)}
        uris = await discover_subsystems(uri, **{name: wanted[name] for name in wanted if name in known})
        there = {one: device for one in uris if (device := self._registry.find(one)) is not None}
        results = await asyncio.gather(
            *(there[one].load() if one in there else self.load(one, **options) for one in uris), return_exceptions=True
        )
        loaded: list[ManagedDevice] = []
        failures: list[BaseException] = []
        for one, result in zip(uris, results, strict=True):
            if isinstance(result, ManagedDevice):
                loaded.append(result)
                continue
            if result is None:
                loaded.append(there[one])
                continue
            if not isinstance(result, NvmeError | OSError):
                raise result
            log.error("%s can't be loaded: %s", one, result)
            self._events.publish(ManagerEvent("device-failed", one, reason=str(result)))
            failures.append(result)
        if failures and not loaded:
            raise failures[0]
        return loaded

    def _find(self, key: str, wanted: dict[str, Any]) -> ManagedDevice:
        """The device at that address; a new one if there is none."""

        def make() -> ManagedDevice:
            worker = self._workers.place(key)
            try:
                made = ManagedDevice(key, worker, wanted, self._policy, self._events, self._forget)
                made.sharing = self._sharing
                return made
            except BaseException:
                self._workers.leave(worker)
                raise

        device = self._registry.find(key)
        if device is None:
            made = make()
            try:
                device = self._registry.add(made)
            finally:
                if device is not made:  # another thread was first, or the manager is closed
                    self._workers.leave(made.worker)
        return device

    def _forget(self, device: ManagedDevice) -> None:
        """Closes it on its worker. A second call does nothing."""
        if self._registry.remove(device.uri, device):
            self._workers.leave(device.worker)

    def _appeared(self, uri: str) -> None:
        """Hot plug, on a worker: loads it, or reloads a device that had vanished."""

        async def load() -> None:
            self._events.publish(ManagerEvent("device-appeared", uri))
            try:
                await self.load(uri)
            except (NvmeError, OSError) as error:
                log.error("%s appeared but can't be loaded: %s", uri, error)
                self._events.publish(ManagerEvent("device-failed", uri, reason=str(error)))

        self._loading.append(asyncio.ensure_future(load()))
        self._loading = [task for task in self._loading if not task.done()]

    async def unload(self, uri: str) -> None:
        """Shuts one device down. Its handles fail from now on, also if it is loaded again. Does
        nothing if it isn't loaded.
        """
        device = self._registry.find(uri)
        if device is not None:
            await device.unload()

    def device(self, uri: str) -> ManagedDevice:
        """A device that is loaded (or was, and failed). KeyError if there is none."""
        device = self._registry.find(uri)
        if device is None:
            raise KeyError(f"{uri} is not loaded")
        return device

    @property
    def devices(self) -> dict[str, ManagedDevice]:
        """{canonical URI: device}, including failed and missing ones."""
        return self._registry.all()

    async def namespace(self, uri: str, nsid: int) -> ManagedNamespace:
        """The handle of a namespace; its device is loaded if it isn't. InvalidNamespace if it has
        no such namespace.
        """
        return await (await self.load(uri)).namespace(nsid)

    async def service(self, uri: str, *, keepalive: bool | None = None, **options: Unpack[ServiceOptions]) -> None:
        """Replaces a device's driver. See ManagedDevice.service()."""
        await self.device(uri).service(keepalive=keepalive, **options)

    async def switch_keepalive(self, setting: str | bool | None, uri: str | None = None) -> None:
        """For one device, or for all and those that are loaded from now on. See
        ManagedDevice.switch_keepalive().
        """
        if uri is not None:
            await self.device(uri).switch_keepalive(setting)
            return
        changed = {**self._options, "keepalive": setting}
        split(changed)
        self._options = changed
        await asyncio.gather(*(device.switch_keepalive(setting) for device in self._registry.all().values()))

    async def save(self, *, timeout: float = 30.0) -> SavedDevices:
        """Releases all running controllers at the same time for a successor; see servicing.py.
        Their handles raise HandedOver from now on.

        A device that can't be saved continues as before and is in `failures`; so is one that is
        busy with another operation for longer than `timeout` seconds. Failed and missing devices
        are left out.
        """
        saved = SavedDevices()

        async def save(uri: str, device: ManagedDevice) -> None:
            try:
                bundle = await device.save(timeout=timeout)
            except NvmeError as error:
                saved.failures[uri] = error
            else:
                if bundle is not None:
                    saved.bundles[uri] = bundle
                else:
                    saved.shut_down.append(uri)

        devices = {
            uri: device
            for uri, device in self._registry.all().items()
            if device.state not in ("failed", "gone", "closed")
        }
        try:
            await asyncio.gather(*(save(uri, device) for uri, device in devices.items()))
        except BaseException:
            saved.close()
            raise
        return saved

    @classmethod
    async def restore(cls, saved: SavedDevices, **options: Unpack[ManagerOptions]) -> Self:
        """A manager that continues with saved devices, all at the same time. options: as for
        Manager().

        A device that can't be taken over is brought up; if that fails too it is "failed", which
        doesn't affect the others. The caller still owns `saved`.
        """
        manager = cls(**options)
        try:
            await asyncio.gather(
                *(manager._take_over(uri, bundle) for uri, bundle in saved.bundles.items()),
                *(manager._take_over(uri, None) for uri in saved.shut_down),
            )
        except BaseException:
            await manager.close()
            raise
        return manager

    async def _take_over(self, uri: str, bundle: Bundle | None) -> None:
        device = self._find(canonical(uri), dict(self._options))
        try:
            await (device.restore(bundle) if bundle is not None else device.load())
        except (NvmeError, OSError) as error:
            log.error("%s: %s", uri, error)

    async def reset(self, uri: str, reason: str = "requested") -> None:
        """Controller reset of one device."""
        await self.device(uri).reset(reason)

    def share(self, path: str | os.PathLike[str], **policy: int | float | str) -> ManagerShare:
        """Lends queue pairs of all devices to other processes of this user, also of devices that
        are loaded later:

            async with Manager() as manager, manager.share("/run/nvme"):
                await manager.load("pci:0000:01:00.0")

        path: of a directory, created if necessary, with one socket per device. A worker opens
        "shared:PATH?device=URI" with nvme_async.open() or with its own Manager. policy: as for
        Controller.share(). Workers don't notice a servicing with keepalive; one without ends their
        leases.

        Raises ConfigurationError for options, if the manager is shared already, or if one of the
        devices can't be shared; then none is.
        """
        return ManagerShare(path, policy, self._share)

    async def _share(self, sharing: ManagerShare | None) -> None:
        if sharing is not None:
            self._registry.check()
            if self._sharing is not None:
                raise ConfigurationError(f"the manager is already shared, at {self._sharing.path}")
        try:
            await self._share_all(sharing)
        except BaseException:
            await self._share_all(None)
            raise

    async def _share_all(self, sharing: ManagerShare | None) -> None:
        self._sharing = sharing
        devices = self._registry.all().values()
        outcomes = await asyncio.gather(*(device.share(sharing) for device in devices), return_exceptions=True)
        for outcome in outcomes:
            # A device that ends meanwhile isn't shared any more.
            if isinstance(outcome, BaseException) and not (sharing is None and isinstance(outcome, NvmeError)):
                raise outcome

    # -- threads and events ------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T], *, timeout: float | None = None) -> T:
        """Runs a coroutine on one of the workers and waits for its result: for threads without an
            event loop. A thread stays with its worker,
        so that it uses the same queue pairs.

        Raises the coroutine's exception, and TimeoutError after `timeout` seconds; then it is
        cancelled.
        """
        try:
            self._registry.check()
            if asyncio._get_running_loop() is not None:
                raise RuntimeError("this thread has a running event loop: await the coroutine")
            worker: Worker | None = getattr(self._own_worker, "worker", None)
            if worker is None:
                worker = self._own_worker.worker = self._workers.any()
            future = worker.submit(coroutine)
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def events(self) -> Subscription:
        """The events of all devices from now on: `async for event in manager.events()`. On a
        running loop; ends when the manager is closed.

        A subscriber that is too slow misses the oldest.
        """
        return self._events.subscribe()

    # -- inspection

    def inspect(self) -> dict[str, Any]:
        """The complete state as plain data (JSON's types). From any thread; doesn't wait, even
        if a device hangs.
        """
        return {
            "pid": os.getpid(),
            "since": self._began,
            "closed": self._registry.closed,
            "events": self._events.published,
            "workers": self._workers.inspect(),
            "devices": {uri: device.inspect() for uri, device in sorted(self._registry.all().items())},
        }

    async def inspect_with_registers(self, *, timeout: float = 5.0) -> dict[str, Any]:
        """inspect(), and each controller's present registers; an error's text in their place if
        a device doesn't answer in time.
        """
        state = self.inspect()

        async def read(device: ManagedDevice) -> dict[str, str] | str:
            try:
                async with asyncio.timeout(timeout):
                    return await device.registers()
            except (NvmeError, OSError) as error:
                return str(error) or type(error).__name__

        devices = self._registry.all()
        for uri, registers in zip(devices, await asyncio.gather(*map(read, devices.values())), strict=True):
            if uri in state["devices"]:
                state["devices"][uri]["registers"] = registers
        return state

    def metrics(self) -> bytes:
        """The text for Prometheus. ConfigurationError without prometheus-client
        (nvme_async[metrics]).
        """
        from nvme_async.manager.metrics import exposition

        return exposition(self)

    def __repr__(self) -> str:
        return f"<Manager of {len(self._registry.all())} devices{', closed' if self._registry.closed else ''}>"
