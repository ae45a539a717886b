"""One managed device: its current driver, and how it gets the next one.

Threads: methods whose names start with an underscore run on the device's worker, most as an
operation of the mailbox, one at a time. The other methods may be called from any loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Unpack

from nvme_async.driver.events import Event
from nvme_async.driver.options import Options
from nvme_async.errors import (
    ControllerTimeout,
    HandedOver,
    NvmeError,
    QueueShutdown,
)
from nvme_async.keepalive import Adopted, Bundle, restore
from nvme_async.keepalive.config import Decision
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.opening import ServiceOptions, choose, open_with_keepalive, with_fused, with_pool
from nvme_async.manager.device_state import DeviceState, State
from nvme_async.manager.drivers import Drivers
from nvme_async.manager.events import Events, Kind, ManagerEvent
from nvme_async.manager.handles import ManagedNamespace
from nvme_async.manager.mailbox import Mailbox
from nvme_async.manager.outcomes import adopted_result, as_nvme_error, forsake
from nvme_async.manager.settings import Policy, split
from nvme_async.manager.sharing import ManagerShare
from nvme_async.manager.upkeep import Upkeep
from nvme_async.manager.workers import Worker

log: logging.Logger = logging.getLogger("nvme_async")


class ManagedDevice(DeviceState):
    """A device of the manager; from `await manager.load(uri)`.

    Attributes:
        uri, state: "loading", "ready", "servicing" (calls wait), "failed", "gone" (calls fail) or
            "closed".
        controller: the current driver, or None. It belongs to the worker's loop and is replaced by
            a servicing.
        decision: whether keepalive is on from the next servicing or save on, and why; None before
            the first driver.
        failure: why calls fail, or None.
        identity: of the handles' controller; None before the first driver.
    """

    servicings: int

    def __init__(
        self,
        uri: str,
        worker: Worker,
        options: dict[str, Any],
        policy: Policy,
        events: Events,
        on_dead: Callable[[ManagedDevice], None],
    ) -> None:
        split(options)  # an invalid option is reported before anything starts
        super().__init__(uri, events)
        self.worker = worker
        self.options: dict[str, Any] = options
        self.mailbox: Mailbox = Mailbox(worker, uri)
        self.decision: Decision | None = None
        self.servicings = 0
        self.repairs = 0
        self._policy = policy
        self._drivers = Drivers(uri, policy.close_limit)
        self._on_dead = on_dead
        self._loaded_once = False
        self.sharing: ManagerShare | None = None
        self._share: Any = None  # of the current driver
        self.share_failure: str = ""
        self._upkeep = Upkeep(self, repairs=policy.repairs, reload=policy.reload)

    @property
    def wait_limit(self) -> float:
        return self._policy.wait_limit

    # -- from any loop -----------------------------------------------------------------------------

    async def load(self) -> None:
        """Opens it, unless it is open. Called again after a failure, it retries."""
        await self.mailbox.call("load", self._load)

    async def unload(self) -> None:
        """Shuts the controller down and releases the device. Handles fail from now on."""
        await self.mailbox.call("unload", lambda: self._end(QueueShutdown(f"{self.uri}: the device was unloaded")))

    async def reset(self, reason: str = "requested") -> None:
        """Controller reset. Calls wait, idempotent in-flight commands are resent."""
        await self.mailbox.call("reset", lambda: self._reset(reason))

    async def service(self, *, keepalive: bool | None = None, **options: Unpack[ServiceOptions]) -> None:
        """Replaces the driver, with new options if any are given. keepalive: True is a live
            takeover, in which the controller isn't touched
        and commands stay in flight (ConfigurationError if it was opened without keepalive). False
        is a shutdown, a function level reset and a bring-up. None: live if keepalive is on, now and
        with the given options.

        Calls wait meanwhile. If it fails, the device is "failed" and so are the calls; load() or
        service() may be retried.
        """
        split({**self.options, **options})
        await self.mailbox.call("service", lambda: self._service_as(keepalive, {**options}))

    async def switch_keepalive(self, setting: str | bool | None) -> None:
        """From the next servicing, save or repair on: True, False, a value as for
            OPENHCL_NVME_KEEP_ALIVE, or None for what command line,
        environment and custodian decide. The current driver continues unchanged. Doesn't wait for
        operations.
        """
        await self.worker.call(lambda: self._switch_keepalive(setting))

    async def share(self, sharing: ManagerShare | None) -> None:
        """Lends its queue pairs from now on, or, with None, no more. ConfigurationError if it
        can't be shared.
        """
        await self.mailbox.call("share", lambda: self._share_from_now_on(sharing))

    async def save(self, *, timeout: float = 30.0) -> Bundle | None:
        """Releases the running controller for the process that restores the bundle, which the
        caller owns. Without keepalive the controller is shut down and there is no bundle.
        Handles raise HandedOver from then on. If it fails, the device is in service as before.

        ControllerTimeout if another operation delays it for longer than `timeout` seconds. Once
        started it runs to its end, within the driver's own limits.
        """
        saving = self.mailbox.post("save", self._save)
        future = asyncio.wrap_future(saving)
        try:
            await asyncio.wait([future], timeout=timeout)
        except asyncio.CancelledError:
            if not saving.cancel():
                saving.add_done_callback(forsake)
            raise
        if not future.done() and saving.cancel():
            running = self.mailbox.inspect()["running"] or {"operation": "its worker", "seconds": timeout}
            raise ControllerTimeout(
                f"{self.uri}: not saved within {timeout:g} s, held up by {running['operation']} "
                f"({running['seconds']:g} s)"
            )
        return await future

    async def restore(self, bundle: Bundle) -> None:
        """Continues with a saved controller. If that isn't possible, it is brought up. The
        caller still owns the bundle.
        """
        await self.mailbox.call("restore", lambda: self._restore(bundle))

    async def namespace(self, nsid: int) -> ManagedNamespace:
        """The handle of a namespace. InvalidNamespace if it doesn't exist; ControllerTimeout if
        the device is busy for longer than the limit.
        """
        handle = self.handles.get(nsid)
        if handle is not None and self.state == "ready":
            return handle
        try:
            async with asyncio.timeout(self.wait_limit):
                return await self.mailbox.call("namespace", lambda: self._namespace(nsid))
        except TimeoutError as error:
            if isinstance(error, NvmeError):
                raise
            raise ControllerTimeout(
                f"{self.uri}: the device has been busy ({self.state}) for more than {self.wait_limit:g} s"
            ) from None

    async def adopted_result(self, controller: Controller, tag: int) -> Adopted | None:
        """The result of a command of the driver before `controller`; None if there was none with
        that tag.
        """
        return await self.worker.call(lambda: adopted_result(controller, tag))

    async def registers(self) -> dict[str, str]:
        """The controller's present registers, as hexadecimal numbers by name."""
        return await self.worker.call(self._registers)

    def inspect(self) -> dict[str, Any]:
        """The device's state as plain data; from any thread, also while an operation hangs."""
        controller = self.controller
        return {
            "uri": self.uri,
            "state": self.state,
            "failure": str(self.failure) if self.failure is not None else None,
            "worker": self.worker.name,
            "mailbox": self.mailbox.inspect(),
            "waiting_calls": self.gate.waiting,
            "retried_calls": sum(handle.retried for handle in list(self.handles.values())),
            "keepalive": {
                "on": controller is not None and controller.keepalive,
                "decision": self.decision.inspect() if self.decision is not None else None,
            },
            "servicings": self.servicings,
            "repairs": self.repairs,
            "shared": self.sharing.place(self.uri) if self.sharing is not None and not self.share_failure else None,
            "share_failure": self.share_failure,
            "controller": controller.inspect() if controller is not None else None,
        }

    def __repr__(self) -> str:
        return f"<ManagedDevice {self.uri} {self.state}>"

    # -- operations --------------------------------------------------------------------------------

    async def _load(self) -> None:
        if self.state == "ready":
            return
        if self.state == "closed":
            assert self.failure is not None
            raise self.failure
        before = self.state
        self._become("loading")
        try:
            await self._drop()
            given = self.options
            options, keepalive_options = split(given)
            controller = await open_with_keepalive(self.uri, options, keepalive_options, fresh=self._drivers.open)
        except BaseException as error:
            failure = as_nvme_error(error, f"{self.uri}: loading failed")
            if self._loaded_once:
                self._become("gone" if before == "gone" else "failed", failure)
            else:
                # Nothing is left behind: the next load starts afresh.
                self._become("closed", failure)
                self._on_dead(self)
            raise
        self._install(controller, given)
        await self._lend()
        self._publish("device-loaded")

    def _install(self, controller: Controller, options: dict[str, Any] | None = None) -> None:
        """It has this driver. options: those it was made with; keepalive may have been switched
        since.
        """
        self.controller = controller
        self._identify(controller)
        if options is self.options:
            self.decision = controller.settings
        self._loaded_once = True
        self._become("ready")
        self._upkeep.follow(controller)

    async def _reset(self, reason: str) -> None:
        await self._ready().reset(reason)

    async def _switch_keepalive(self, setting: str | bool | None) -> None:
        changed = {**self.options, "keepalive": setting}
        options, keepalive_options = split(changed)
        decision, custodian = choose(self.uri, Options.of(options), keepalive_options)
        if custodian is not None:
            custodian.close()
        self.options, self.decision = changed, decision

    @property
    def _live(self) -> bool:
        """Is keepalive on, in the current driver and by the latest decision?"""
        return (
            self.controller is not None
            and self.controller.keepalive
            and self.decision is not None
            and self.decision.enabled
        )

    async def _service_as(self, keepalive: bool | None, options: dict[str, Any]) -> None:
        changed = {**self.options, **options}
        if keepalive is None:
            keepalive = self._live and split(changed)[1].keepalive is not False
        await (self._service_live(changed) if keepalive else self._service(changed))

    async def _service(self, changed: dict[str, Any]) -> None:
        if self.state == "closed":
            raise self.failure or QueueShutdown(f"{self.uri}: the device is closed")
        try:
            await self._replace(changed)
        except BaseException as error:
            failure = as_nvme_error(error, f"{self.uri}: servicing failed")
            self._become("failed", failure)
            self._publish("device-failed", str(failure))
            raise

    async def _replace(self, changed: dict[str, Any]) -> None:
        """The driver is shut down, the device reset, and a new driver brought up."""
        controller = self.controller
        self._become("servicing")
        self.controller = None
        left = await self._drivers.within_limit(controller, controller.release()) if controller is not None else None
        self.options = changed
        given, keepalive_options = split(changed)
        options = Options.of(given)
        again = await self._drivers.transport_again(left, options)
        try:
            decision, custodian = choose(self.uri, options, keepalive_options)
        except BaseException:
            again.abandon()
            raise
        fresh = await self._drivers.settled(
            self._drivers.bring_up(again, with_pool(options, decision)), decision, custodian
        )
        self.servicings += 1
        self._install(fresh, changed)
        await self._lend()
        self._publish("device-serviced")

    async def _service_live(self, changed: dict[str, Any]) -> None:
        controller = self._ready()
        depositor = controller.depositor
        if depositor is not None:
            depositor.stays = True  # if this process dies now, its successor finds the controller there
        try:
            bundle = await self._let_go(controller)
        except BaseException:
            if depositor is not None:
                depositor.stays = False
            raise
        if depositor is not None:
            depositor.leave()
        with bundle:
            self.options = changed
            await self._go_on(bundle)
        self.servicings += 1
        self._publish("device-serviced")

    async def _let_go(self, controller: Controller) -> Bundle:
        """The controller's bundle, after which there is no driver. If it fails the driver
        continues.
        """
        self._become("servicing")
        self.controller = None
        try:
            return await controller.save()
        except BaseException:
            self._install(controller)
            raise

    async def _go_on(self, bundle: Bundle) -> None:
        """A driver from a bundle."""
        self._become("servicing" if self._loaded_once else "loading")
        try:
            before = self.options
            given, keepalive_options = split(before)
            decision, custodian = choose(self.uri, Options.of(given), keepalive_options)
            given = with_fused(given, decision)
            given["keepalive"] = decision.enabled
            if decision.enabled:
                given["pool_bytes"] = decision.pool_bytes
            self._install(
                await self._drivers.settled(restore(bundle, policy="fresh", **given), decision, custodian), before
            )
        except BaseException as error:
            failure = as_nvme_error(error, f"{self.uri}: taking the controller over failed")
            self._become("failed", failure)
            self._publish("device-failed", str(failure))
            raise
        await self._lend()

    async def _share_from_now_on(self, sharing: ManagerShare | None) -> None:
        self.sharing, self.share_failure = sharing, ""
        if sharing is None:
            share, self._share = self._share, None
            if share is not None:
                await share.close()
        elif self.state == "ready" and self.controller is not None:
            self._share = await self.controller.share(sharing.place(self.uri), **sharing.policy)

    async def _lend(self) -> None:
        """The driver is new. If it can't be shared, it serves at least this process."""
        if self.sharing is not None:
            try:
                await self._share_from_now_on(self.sharing)
            except NvmeError as error:
                self.share_failure = str(error)
                log.error("%s can't be shared: %s", self.uri, error)

    async def _save(self) -> Bundle | None:
        controller = self._ready()
        bundle: Bundle | None = None
        if self._live:
            bundle = await self._let_go(controller)
            if controller.depositor is not None:
                await controller.depositor.end()
        else:
            self._become("servicing")
            self.controller = None
            await self._drivers.within_limit(controller, controller.close())
        await self._end(HandedOver(f"{self.uri}: the device was saved for a successor"))
        return bundle

    async def _restore(self, bundle: Bundle) -> None:
        await self._go_on(bundle)
        self._publish("device-loaded")

    async def _drop(self) -> bool:
        """Closes the driver, if there is one."""
        controller, self.controller = self.controller, None
        if controller is None:
            return False
        await self._drivers.within_limit(controller, controller.close())
        return True

    async def _end(self, reason: NvmeError) -> None:
        """Closes it for good."""
        self._become("closed", reason)
        self._on_dead(self)
        self._upkeep.stop()
        if await self._drop():
            self._publish("device-unloaded")

    async def _shut_down(self, reason: NvmeError) -> None:
        """The manager ends. A running operation is cancelled. Not through the mailbox."""
        if self.state != "closed":
            self._become("closed", reason)
        await self.mailbox.shut(reason, 2.5 * self._policy.close_limit)
        await self._end(reason)

    async def _registers(self) -> dict[str, str]:
        return await self._ready().registers.snapshot()

    # -- called by its upkeep ---------------------------------------------------------------------

    def pass_on(self, event: Event) -> None:
        """An event of the driver: handles first, then subscribers."""
        kind: Kind = event.kind
        if event.nsid in self.handles and event.reservation is None:
            if not self._bind(event.nsid):
                kind = "namespace-replaced"  # also when it was removed before, and this one was added
            self.gate.wake()
        self._events.publish(ManagerEvent(kind, self.uri, event.nsid, event=event.event, reservation=event.reservation))

    def out_of_order(self, state: State, failure: NvmeError, kind: Kind | None = None) -> None:
        """ "servicing": calls wait for the next driver; otherwise they fail with `failure`."""
        self._become(state, failure if state != "servicing" else None)
        if kind is not None:
            self._publish(kind, str(failure))

    async def replace_driver(self) -> None:
        """Shutdown, reset, bring-up, with the present options. Raises NvmeError; then the caller
        decides about the device.
        """
        try:
            await self._replace(self.options)
        except Exception as error:
            raise as_nvme_error(error, f"{self.uri}: the repair failed") from error

    async def drop_driver(self) -> bool:
        return await self._drop()
