"""A controller's properties by Property Get and Property Set (Base 2.0, 6.5 and 6.6), in the
place of registers.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence

from nvme_async.driver.tcp.queues import TcpQueue
from nvme_async.errors import ControllerFatal, ControllerTimeout, NvmeError
from nvme_async.spec.registers import WIDE, Cap, Cc, CommandSetSelected, Crto, Csts, Register, ShutdownNotification, Vs

_FABRICS, _SET, _GET = 0x7F, 0x00, 0x04
SECONDS = 10.0
"""For one of these commands."""


def of_fabrics(cap: Cap) -> Sequence[Register]:
    """The properties that a controller on a fabric has (Base 2.1, figure 33)."""
    optional = ((Register.NSSR, cap.nssrs), (Register.NSSD, cap.nsss), (Register.CRTO, cap.crms))
    return (Register.CAP, Register.VS, Register.CC, Register.CSTS, *(one for one, there in optional if there))


def _command(kind: int, offset: int, value: int = 0) -> bytes:
    wide = offset in WIDE
    return struct.pack("<BBHB35x", _FABRICS, 0, 0, kind) + struct.pack("<B3xIQ8x", wide, offset, value)


class Properties:
    """On the admin queue, on its loop. Raises ControllerTimeout, and the error of the queue's
    connection.
    """

    def __init__(self, uri: str, queue: Callable[[], TcpQueue]) -> None:
        self.uri = uri
        self._queue = queue
        self._with_media = 0.0

    async def _send(self, what: str, sqe: bytes) -> int:
        queue = self._queue()
        try:
            async with asyncio.timeout(SECONDS) as timer:
                dw0, dw1, _ = await queue.hot.request(sqe, internal=True, driver=True)
        except TimeoutError as error:
            if isinstance(error, NvmeError) or not timer.expired():
                raise
            raise ControllerTimeout(f"{self.uri}: no answer to {what} for {SECONDS:g} s") from None
        return int(dw0 | dw1 << 32)

    async def get(self, register: Register) -> int:
        """Its value: 4 bytes, or 8 of CAP."""
        value = await self._send(f"Property Get of {register.name}", _command(_GET, register))
        return value if register in WIDE else value & 0xFFFF_FFFF

    async def set(self, register: Register, value: int) -> None:
        """Properties that may be set are 4 bytes wide."""
        await self._send(f"Property Set of {register.name}", _command(_SET, register, value))

    async def cap(self) -> Cap:
        cap = Cap.from_int(await self.get(Register.CAP))
        if cap.crms & 1:
            self._with_media = Crto.from_int(await self.get(Register.CRTO)).with_media_seconds
        return cap

    async def vs(self) -> Vs:
        return Vs.from_int(await self.get(Register.VS))

    async def csts(self) -> Csts:
        return Csts.from_int(await self.get(Register.CSTS))

    async def _wait(self, done: Callable[[Csts], bool], seconds: float, what: str) -> None:
        loop = asyncio.get_running_loop()
        limit, pause = loop.time() + seconds, 0.001
        while True:
            csts = await self.csts()
            if done(csts):
                return
            if csts.cfs:
                raise ControllerFatal(f"{self.uri}: CSTS.CFS was set while waiting for {what}")
            if loop.time() >= limit:
                raise ControllerTimeout(f"{self.uri}: {what} took longer than {seconds:g} s (CSTS {csts.to_int():#x})")
            await asyncio.sleep(min(pause, max(0.0, limit - loop.time())))
            pause = min(pause * 1.5, 0.1)

    async def enable(self, cap: Cap, *, all_command_sets: bool) -> None:
        """CC.EN=1, then CSTS.RDY (3.5.2)."""
        css = CommandSetSelected.ALL_SUPPORTED if all_command_sets else CommandSetSelected.NVM
        cc = Cc(en=True, css=css, mps=0, ams=0, shn=0, iosqes=6, iocqes=4)
        await self.set(Register.CC, cc.to_int())
        await self._wait(lambda csts: csts.rdy, max(cap.timeout_seconds, self._with_media), "CSTS.RDY=1 after CC.EN=1")

    async def disable(self, cap: Cap) -> None:
        """CC.EN=0, then CSTS.RDY=0: what was in flight has ended (3.7.2)."""
        cc = await self.get(Register.CC)
        if cc & 1:
            await self.set(Register.CC, cc & ~1 & ~(3 << 14))
            seconds = max(cap.timeout_seconds, self._with_media)
            await self._wait(lambda csts: not csts.rdy, seconds, "CSTS.RDY=0 after CC.EN=0")

    async def shut_down(self, seconds: float) -> None:
        """CC.SHN=01b, then CSTS.SHST=10b; some controllers clear RDY instead (3.6.2)."""
        cc = await self.get(Register.CC)
        await self.set(Register.CC, cc & ~(3 << 14) | ShutdownNotification.NORMAL << 14)
        await self._wait(lambda csts: csts.shst == 2 or not csts.rdy, seconds, "CSTS.SHST=10b after CC.SHN")
