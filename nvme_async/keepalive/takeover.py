"""The successor's side of a hand-over: takes a running controller over from the process that
offers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from nvme_async.driver.opening import open_controller
from nvme_async.driver.options import Options
from nvme_async.errors import ControllerError, ControllerGone, LeaseError, NvmeError, RestoreRefused
from nvme_async.keepalive.bundle import receive_bundle
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.custodian import find_custodian
from nvme_async.keepalive.depositor import Depositor
from nvme_async.keepalive.handover_wire import READY_SECONDS, VERSION, Wire, check_peer
from nvme_async.keepalive.inheritance import merge_offered
from nvme_async.keepalive.restoration import Restoration
from nvme_async.runtime import late
from nvme_async.runtime.limits import shortage
from nvme_async.runtime.tasks import in_thread

log: logging.Logger = logging.getLogger("nvme_async")


async def take_over(
    where: str | os.PathLike[str] | socket.socket,
    options: dict[str, Any],
    keeper: str | None = None,
    loops: Sequence[asyncio.AbstractEventLoop] = (),
) -> Controller:
    """See nvme_async.take_over(). May be cancelled: until commit() nothing has happened, and
    afterwards there are no waits.
    """
    Options.of(options)  # an error must be found before anything stops
    custodian = find_custodian(keeper)
    try:
        controller = await _take_over(where, options, loops)
    except BaseException:
        if custodian is not None:
            custodian.close()
        raise
    if custodian is not None and controller.keepalive:
        controller.depositor = Depositor(controller, custodian)
        controller.depositor.succeed(READY_SECONDS)
    elif custodian is not None:
        custodian.close()
    return controller


async def _take_over(
    where: str | os.PathLike[str] | socket.socket, options: dict[str, Any], loops: Sequence[asyncio.AbstractEventLoop]
) -> Controller:
    wire = Wire(where if isinstance(where, socket.socket) else await _connect(os.fspath(where)))
    try:
        check_peer(wire.socket, "offers a controller")
        keepalive = options.get("keepalive", True) is True
        await wire.send(hello=VERSION, pid=os.getpid(), keepalive=keepalive, short=True, beside=True, lease=keepalive)
        offer = await wire.receive(60.0)
        if offer.get("offer") == "beside":
            controller = await _take_beside(wire, offer, options)
            if controller is not None:
                return controller
            offer = await wire.receive(60.0)
        if offer.get("offer") == "lease":
            worker: Controller = await late.call("inherit lease", wire, offer, options)
            return worker
        if offer.get("offer") == "live":
            return await _take_live(wire, offer, options, loops)
        if offer.get("offer") == "fresh":
            return await open_controller(
                str(offer.get("uri")), merge_offered(offer.get("options"), options), Controller
            )
        raise RestoreRefused(f"the predecessor withdrew: {offer.get('withdrawn', 'no reason given')}")
    except NvmeError:
        raise
    except ConnectionError as error:
        raise ControllerGone(f"the hand-over failed: {error}") from error
    except (OSError, MemoryError, RuntimeError) as error:
        missing = shortage(error)
        if missing is None:
            raise
        raise RestoreRefused(f"the hand-over failed: {missing}") from error
    finally:
        wire.close()


async def _take_beside(wire: Wire, offer: dict[str, Any], options: dict[str, Any]) -> Controller | None:
    """Opens the controller while the predecessor still serves. None if it has no queues left for
    two processes: then the predecessor shuts its own down first.
    """
    try:
        controller = await open_controller(
            str(offer.get("uri")), merge_offered(offer.get("options"), options), Controller
        )
    except BaseException as error:
        if isinstance(error, LeaseError) and error.code == "full":
            await wire.send(full=str(error))
            return None
        with contextlib.suppress(OSError):
            wire.send_now(refused=str(error) or repr(error))
        raise
    try:
        await wire.send(ready=True)
        answer = await wire.receive(READY_SECONDS)
        if "go" not in answer:
            raise ControllerError(f"the predecessor withdrew: {answer.get('withdrawn', 'no reason given')}")
        with contextlib.suppress(OSError):  # it ended after "go": it has nothing in flight
            wire.send_taken(short=True)
    except BaseException:
        await controller.close()
        raise
    controller.adopted.pause = max(0.0, time.monotonic() - float(answer["go"].get("frozen", 0.0)))
    return controller


async def _take_live(
    wire: Wire, offer: dict[str, Any], options: dict[str, Any], loops: Sequence[asyncio.AbstractEventLoop]
) -> Controller:
    bundle = await in_thread(receive_bundle, wire.socket, READY_SECONDS)
    restoration = Restoration(bundle, options)
    try:
        await restoration.meet(loops)
        restoration.prepare()
        short = "registers" in offer
        if offer.get("direct"):
            await restoration.connect()
        elif short:
            await restoration.connect_told(offer["registers"])
        if restoration.device is not None:
            restoration.build()
            restoration.populate()
        await wire.send(ready=True)
        answer = await wire.receive(READY_SECONDS, alone=True)
        if "go" not in answer:
            raise ControllerError(f"the predecessor withdrew: {answer.get('withdrawn', 'no reason given')}")
        go = answer["go"]
        restoration.heard(go)
        controller = await restoration.commit()
    except BaseException as error:
        # First release the device, then notify the predecessor: from that moment on the predecessor
        # uses it.
        restoration.abort()
        with contextlib.suppress(OSError):
            wire.send_now(refused=str(error) or repr(error), touched=restoration.touched)
        raise restoration.refusal(error) from error
    try:
        wire.send_taken(short=short)
    except OSError as error:
        # It was killed after "go". Everything that it left is here, so nothing is lost.
        log.warning(
            "%s: the predecessor ended during the hand-over (%s); this process continues", controller.uri, error
        )
    controller.adopted.pause = max(0.0, time.monotonic() - float(go.get("frozen", 0.0)))
    return controller


async def _connect(path: str) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise RestoreRefused(f"no socket for the hand-over: {shortage(error) or error}") from None
    sock.setblocking(False)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, path)
    except (OSError, TimeoutError) as error:
        sock.close()
        raise ControllerGone(
            f"no process offers a controller at {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    return sock
