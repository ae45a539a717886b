"""Used if a live restore isn't wanted or possible: resets the controller FIRST, then frees the
predecessor's buffers, then brings it up.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import attrs

from nvme_async.device import Device, resume_device
from nvme_async.dma import DmaBuffer, Pool
from nvme_async.driver.options import Options
from nvme_async.driver.pcie.opening import open_device_async
from nvme_async.driver.pcie.registers import Registers
from nvme_async.driver.pcie.transport import PcieTransport
from nvme_async.errors import ControllerError, InvalidSavedState, NvmeError
from nvme_async.keepalive import manifest
from nvme_async.keepalive import state as saved
from nvme_async.keepalive.adopted import Adopted
from nvme_async.keepalive.bundle import Bundle, duplicates
from nvme_async.keepalive.controller import Controller
from nvme_async.keepalive.inheritance import merge_afresh
from nvme_async.keepalive.state import State
from nvme_async.native import _hotpath
from nvme_async.runtime import late
from nvme_async.runtime.tasks import in_thread

log: logging.Logger = logging.getLogger("nvme_async")


async def reclaim(bundle: Bundle, options: dict[str, Any], why: str) -> Controller:
    """A controller that was brought up afresh, with the predecessor's options where `options` has
    none; `adopted.lost` lists the predecessor's in-flight commands.
    """
    Options.of(options)  # an error must be found before anything is reset
    pool, state, complete = _what_is_left(bundle)
    chosen = merge_afresh(state, options, why)
    # Held until the pool is detached: a buffer dropped before the reset would become free in the
    # pool's table.
    held: list[DmaBuffer] = []
    try:
        lost = _lost(pool, state, why, held)
        if pool is not None and state is not None:
            _give_up(pool, state)
        stale = _end_sharing(bundle, state)
        device = await _reset(bundle, pool if complete else None, state)
    finally:
        if pool is not None:
            pool.detach()  # its memory ends with the last descriptor
            held.clear()
            pool.close()
    try:
        controller = Controller(PcieTransport(device), chosen)
    except BaseException:
        device.close()
        raise
    # Living workers of the predecessor may still ring these queues' doorbells.
    controller.queues.lent |= stale
    await controller.bring_up()
    controller.adopted.lost = tuple(lost)
    if lost:
        log.warning("%s: %d commands of the predecessor are lost", bundle.uri, len(lost))
    return controller


def _end_sharing(bundle: Bundle, state: State | None) -> set[int]:
    """Stops the predecessor's workers before the reset; returns the queue ids of living ones."""
    sharing = state.sharing if state is not None else {}
    fd = bundle.descriptors.get("sharing.stop")
    if fd is None and not sharing:
        return set()
    stale: set[int] = late.call("end sharing", -1 if fd is None else os.dup(fd), sharing)
    return stale


def _what_is_left(bundle: Bundle) -> tuple[Pool | None, State | None, bool]:
    """Reads as much of pool and saved state as possible. The last value: does the state name all
    memory that the device has mapped?
    """
    try:
        pool = Pool.attach(bundle.descriptors["pool"])
    except (KeyError, InvalidSavedState, OSError) as error:
        log.warning("%s: reading the predecessor's pool failed: %s", bundle.uri, error)
        return None, None, False
    try:
        return pool, saved.decode(manifest.find(pool)[2]), True
    except InvalidSavedState as error:
        log.warning("%s: %s", bundle.uri, error)
    try:
        # Older, but sufficient for the queues' places. Memory may have been registered since.
        state = saved.decode(bundle.manifest)
        return pool, state if state.pool_id == pool.id else None, False
    except InvalidSavedState:
        return pool, None, False


def _give_up(pool: Pool, state: State) -> None:
    """Before the controller is touched: no process may continue from this saved state, even if
    this process is killed once the controller runs again with other memory, and the holder
    passes the old bundle to the next process.
    """
    try:
        offset, sequence, _ = manifest.find(pool)
    except InvalidSavedState:
        return  # no process continues from it
    try:
        buffer = pool.claim(offset)
        manifest.Manifest(pool, buffer, sequence).write(
            saved.encode(attrs.evolve(state, phase="resetting", pid=os.getpid()))
        )
    except (ValueError, NvmeError) as error:
        log.warning("%s: the saved state can't be marked as void: %s", pool.name, error)


def _lost(pool: Pool | None, state: State | None, why: str, held: list[DmaBuffer]) -> list[Adopted]:
    """The outstanding commands according to the predecessor's trackers. held: the queues' memory
    is added to it.
    """
    lost = []
    for queue in state.queues if pool is not None and state is not None else ():
        assert pool is not None
        try:
            held.append(pool.claim(queue.offset))
            commands = _hotpath.leftovers(held[-1], queue.qid, Adopted)
        except (ValueError, NvmeError) as error:
            log.warning("%s: queue %d can't be read: %s", pool.name, queue.qid, error)
            continue
        for command in commands:
            command.lose(
                ControllerError(f"{command.name}: lost, the controller was reset ({why})") if command.sent else None
            )
            lost.append(command)
    return lost


async def _reset(bundle: Bundle, pool: Pool | None, state: State | None) -> Device:
    """The device, with its controller disabled and none of the predecessor's memory mapped."""
    fds = duplicates(bundle.part("device."))
    device: Device | None = None
    try:
        device = await in_thread(resume_device, bundle.uri, fds, state.device_state if state is not None else None)
        registers = Registers(device)
        await registers.disable(await registers.cap())
        if pool is None:  # they might overlap with those of the next driver
            raise InvalidSavedState("the mappings of the device are unknown")
        mappings = [(pool.iova, pool.nbytes)]
        mappings += (
            [(registration.iova, registration.nbytes) for registration in state.registrations]
            if state is not None
            else []
        )
        for lease in state.sharing.get("leases", ()) if state is not None else ():
            mappings += [(int(iova), int(nbytes)) for iova, nbytes in lease["mappings"]]
        for iova, nbytes in mappings:
            await in_thread(device.unmap_dma, iova, nbytes)
        return device
    except (NvmeError, OSError) as error:
        # Its mappings go with the device; a new one has none.
        log.warning("%s: %s; opening the device afresh", bundle.uri, error)
        if device is not None:
            await in_thread(device.close)
        return await open_device_async(bundle.uri)
    except BaseException:
        if device is not None:
            device.close()
        raise
