"""From a device address to a controller, through its holder: live restore, reclaim, or a fresh
bring-up; then the deposit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from nvme_async.driver.opening import open_controller
from nvme_async.driver.options import DriverOptions, Options
from nvme_async.errors import ConfigurationError, ControllerGone, DeviceError, InvalidSavedState, NvmeError
from nvme_async.keepalive import execute
from nvme_async.keepalive.bundle import Bundle
from nvme_async.keepalive.config import Decision, Outcome, decide, outcome
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.custodian import Custodian, find_custodian
from nvme_async.keepalive.depositor import Depositor
from nvme_async.keepalive.restoration import restore
from nvme_async.keepalive.sizing import Wanted
from nvme_async.spec.registers import PAGE

log: logging.Logger = logging.getLogger("nvme_async")


class ServiceOptions(DriverOptions, total=False):
    """The keyword arguments of nvme_async.open() and Manager.service() besides keepalive."""

    pool_pages: int | str | None
    vfio: bool | None
    disable_keepalive: bool | None
    pool_numa: str | None
    always_flr: bool | None
    keeper: str | None
    keeper_wait: float


class OpenOptions(ServiceOptions, total=False):
    """The keyword arguments of nvme_async.open()."""

    keepalive: str | bool | None


@attrs.frozen(kw_only=True)
class KeepaliveOptions:
    """The keepalive arguments of open(); see nvme_async.open()."""

    keepalive: str | bool | None = None
    pool_pages: int | str | None = None
    vfio: bool | None = None
    disable_keepalive: bool | None = None
    pool_numa: str | None = None
    always_flr: bool | None = None
    keeper: str | None = None
    keeper_wait: float = attrs.field(default=0.0)

    @keeper_wait.validator
    def _check_wait(self, _: object, value: float) -> None:
        if not 0 <= value <= 86400:
            raise ConfigurationError(f"keeper_wait is {value}, must be 0 to 86400 seconds")


async def _taken(uri: str, custodian: Custodian | None, wait: float) -> Bundle | None:
    """The bundle that the predecessor left: across an exec, or with the custodian."""
    inherited = execute.take(uri)
    try:
        held = await custodian.take(uri, wait) if custodian is not None else None
    except BaseException:
        if inherited is not None:
            execute.keep(inherited)
        raise
    if inherited is not None and held is not None:
        held.close()
    return inherited or held


async def _follow(
    uri: str,
    bundle: Bundle,
    decision: Decision,
    options: dict[str, Any],
    custodian: Custodian | None,
    loops: Sequence[asyncio.AbstractEventLoop],
) -> Controller | None:
    """The controller of `bundle`, live or reclaimed. None if its device ended with its driver:
    then it is as if there were none.
    """
    what = outcome(saved=True, pool="pool" in bundle.descriptors, keepalive=decision.enabled)
    if what is Outcome.MISSING_POOL:
        raise InvalidSavedState(
            f"{uri}: a predecessor left its controller without the private pool (no descriptor named pool)"
        )
    try:
        if what is Outcome.LIVE_RESTORE:
            return await restore(bundle, policy="fresh", loops=loops, **options)
        return await restore(bundle, **{**options, "keepalive": False})
    except (ControllerGone, DeviceError) as error:
        log.warning("%s: the predecessor's state can't be used (%s); opening afresh", uri, error)
        if custodian is not None:
            await custodian.forget(uri)
        return None
    finally:
        bundle.close()


def choose(uri: str, options: Options, keepalive_options: KeepaliveOptions) -> tuple[Decision, Custodian | None]:
    """Whether keepalive is on for a controller, and its holder; the caller closes the custodian.
    On the home loop.

    ConfigurationError if its kind of device is switched off.
    """
    custodian = find_custodian(keepalive_options.keeper)
    try:
        decision = decide(
            keepalive=keepalive_options.keepalive,
            pool_pages=keepalive_options.pool_pages,
            vfio=keepalive_options.vfio,
            disable_keepalive=keepalive_options.disable_keepalive,
            pool_numa=keepalive_options.pool_numa,
            always_flr=keepalive_options.always_flr,
            fused=options.fused,
            holder=custodian.words
            if custodian is not None
            else ("the successor of an exec" if execute.is_waiting(uri) else None),
            default_pool_pages=options.pool_bytes // PAGE,
            wanted=Wanted(
                queue_entries=options.queue_entries,
                admin_entries=options.admin_entries,
                max_transfer=options.max_transfer,
                io_queues=options.io_queues,
                locked=uri.partition(":")[0].lower() == "pci",
            ),
        )
        decision.check_scheme(uri)
    except BaseException:
        if custodian is not None:
            custodian.close()
        raise
    return decision, custodian


def with_fused(given: dict[str, Any], decision: Decision) -> dict[str, Any]:
    """The options of a driver that takes a controller over, by name."""
    return given if decision.fused is None else {**given, "fused": decision.fused}


def with_pool(options: Options, decision: Decision) -> Options:
    """The options of a fresh driver."""
    if decision.always_flr:
        options = attrs.evolve(options, always_flr=True)
    if decision.pool_numa:
        options = attrs.evolve(options, numa="split")
    options = attrs.evolve(options, fused=decision.fused)
    return attrs.evolve(options, keepalive=True, pool_bytes=decision.pool_bytes) if decision.enabled else options


def was_restored(controller: Controller) -> bool:
    """Is it the running controller of a predecessor? Then the holder has its descriptors."""
    return controller.phases is not None and "adopt" in controller.phases.seconds


async def settle_in(
    controller: Controller, decision: Decision, custodian: Custodian | None, *, at_once: bool = False
) -> None:
    """The controller has its driver: deposits it, if it is kept alive and has a holder. The
    controller then owns the custodian. at_once: doesn't wait for the deposit of a controller that
    was restored.
    """
    controller._decided(decision)
    if custodian is not None and controller.keepalive:
        controller.depositor = Depositor(controller, custodian)
        if at_once and was_restored(controller):
            controller.depositor.follow()
        else:
            await controller.depositor.start()
    elif custodian is not None:
        await custodian.drop(controller.uri)
        custodian.close()


async def _bring_up(uri: str, options: Options) -> Controller:
    return await open_controller(uri, options, Controller)


async def open_with_keepalive(
    uri: str,
    given: dict[str, Any],
    keepalive_options: KeepaliveOptions,
    *,
    fresh: Callable[[str, Options], Awaitable[Controller]] | None = None,
    loops: Sequence[asyncio.AbstractEventLoop] = (),
    at_once: bool = False,
) -> Controller:
    """nvme_async.open(). given: options by name. fresh: brings up a controller without a
    predecessor. loops: as for take_over(). at_once: see settle_in().
    """
    options = Options.of(given)
    decision, custodian = choose(uri, options, keepalive_options)
    controller: Controller | None = None
    try:
        bundle = await _taken(uri, custodian, keepalive_options.keeper_wait)
        if bundle is not None:
            controller = await _follow(uri, bundle, decision, with_fused(given, decision), custodian, loops)
        if controller is None:
            controller = await (fresh or _bring_up)(uri, with_pool(options, decision))
        await settle_in(controller, decision, custodian, at_once=at_once)
    except BaseException as error:
        if controller is not None:
            await controller.close()
        if custodian is not None:
            await _give_up(uri, custodian, error)
        raise
    return controller


async def _give_up(uri: str, custodian: Custodian, error: BaseException) -> None:
    """Releases this process's reservation or deposit for the next process to try."""
    try:
        if getattr(error, "code", "") != "owned":
            await custodian.release(uri)
    except NvmeError as trouble:
        log.warning("%s: %s", uri, trouble)
    finally:
        custodian.close()
