"""Fused operations on a native queue pair (Base 2.1, 3.4.2). The sending is in
ext/hotpath/fusing.pxi.
"""

from __future__ import annotations

import asyncio

from nvme_async.dma.buffers import BufferLike
from nvme_async.driver.queues.loop_queue import LoopQueue
from nvme_async.errors import CommandError
from nvme_async.native import _hotpath
from nvme_async.spec.commands import Command
from nvme_async.spec.completion import Completion
from nvme_async.spec.opcodes import Direction

Outcome = Completion | CommandError


async def _reserve(hot: _hotpath.QueuePair) -> None:
    """Two command ids. Cancelled: none."""
    turns: list[asyncio.Future[None] | None] = []
    try:
        for _ in range(2):
            turn = _hotpath.turn_for_fused(hot)
            turns.append(turn)
            if turn is not None:
                await turn
    except BaseException:
        for turn in turns:
            _hotpath.give_back_turn(hot, turn)
        raise


async def _send(hot: _hotpath.QueuePair, first: _hotpath.Request, second: _hotpath.Request) -> None:
    while True:
        await _reserve(hot)
        later = _hotpath.send_fused(hot, first, second)
        if later is None:
            return
        future, reserved = later
        try:
            await future
        finally:
            if reserved:
                _hotpath.give_back_turn(hot, future)


async def _outcome(queue: LoopQueue, request: _hotpath.Request) -> Outcome:
    try:
        dw0, dw1, _ = await request
    except CommandError as error:
        return error
    return Completion(dw0=dw0, dw1=dw1, sqid=queue.qid)


def _request(
    queue: LoopQueue, command: Command, buffer: BufferLike | None, geometry: _hotpath.Geometry | None
) -> _hotpath.Request:
    to_host = command.direction is Direction.CONTROLLER_TO_HOST
    return queue.hot.request(command.pack(), buffer, to_host=to_host, geometry=geometry)


async def submit_fused(
    queue: LoopQueue,
    commands: tuple[Command, Command],
    buffers: tuple[BufferLike | None, BufferLike | None],
    geometry: _hotpath.Geometry | None = None,
) -> tuple[Outcome, Outcome]:
    """Sends two commands, with FUSE 01b and 10b, as one operation, and waits for both. Of a command
    that failed the result is its CommandError; other errors are raised.

    After a reset neither is sent again: the caller gets the error of the reset, and doesn't know
    whether they were executed. Cancelled: as for any command, the controller may still execute
    them, and the buffers are held until it has.
    """
    first = _request(queue, commands[0], buffers[0], geometry)
    second = _request(queue, commands[1], buffers[1], geometry)
    try:
        async with queue.fusing:
            await _send(queue.hot, first, second)
        return await _outcome(queue, first), await _outcome(queue, second)
    finally:
        first.close()
        second.close()
