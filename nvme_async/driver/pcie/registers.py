"""Register sequences: reset, enable and shut down a controller (NVMe Base 2.0, 3.5 and 3.6), each
step within a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from nvme_async.device import Device
from nvme_async.device.quirks import NO_QUIRKS, Quirk, Quirks
from nvme_async.errors import ControllerError, ControllerFatal, ControllerGone, ControllerTimeout
from nvme_async.runtime.tasks import in_thread
from nvme_async.spec.registers import (
    DOORBELL_BASE,
    WIDE,
    Aqa,
    Cap,
    Cc,
    CommandSetSelected,
    Crto,
    Csts,
    Register,
    ShutdownNotification,
    ShutdownStatus,
    Vs,
)

T = TypeVar("T")
ALL_ONES = 0xFFFF_FFFF
# Seconds, for the quirks of these names.
DELAY_BEFORE_INIT = 2.0
DELAY_BEFORE_READY = 2.3
SHOWN = (Register.CAP, Register.VS, Register.CC, Register.CSTS, Register.AQA, Register.ASQ, Register.ACQ)


class Registers:
    """BAR0 of one controller, awaitable: if an access is a message (vfio-user), it is made in a
    thread, never on the loop.
    """

    def __init__(self, device: Device, quirks: Quirks = NO_QUIRKS) -> None:
        self.device = device
        self.quirks = quirks
        self.programmed: dict[str, int] = {}
        """The controller's setup since enable(): cap, vs, cc, aqa, asq, acq as read."""
        self._with_media = 0.0

    @property
    def all_command_sets(self) -> bool:
        """Does the controller run with CC.CSS=110b, so that Identify by command set can be used?"""
        return Cc.from_int(self.programmed.get("cc", 0)).css == CommandSetSelected.ALL_SUPPORTED

    async def lost(self) -> str:
        """Why the controller isn't as enable() left it, or "": another party has reset it, or it
        has failed. ControllerGone if registers read all-ones.
        """
        csts, cc = await self.csts(), (await self.cc()).to_int()
        if csts.cfs:
            return "CSTS.CFS is set"
        if not csts.rdy:
            return f"CSTS.RDY became 0 although the driver did not reset the controller (CSTS {csts.to_int():#x})"
        programmed = self.programmed.get("cc", cc)
        if cc != programmed:
            return f"CC reads {cc:#x}, {programmed:#x} was written"
        return ""

    async def _call(self, function: Callable[..., T], *arguments: int) -> T:
        if self.device.direct:
            return function(*arguments)
        return await in_thread(function, *arguments)

    async def read32(self, offset: int) -> int:
        return await self._call(self.device.read32, offset)

    async def read64(self, offset: int) -> int:
        return await self._call(self.device.read64, offset)

    async def write32(self, offset: int, value: int) -> None:
        await self._call(self.device.write32, offset, value)

    async def write64(self, offset: int, value: int) -> None:
        await self._call(self.device.write64, offset, value)

    async def settle(self) -> None:
        """After the device was opened, before its first register."""
        if Quirk.DELAY_BEFORE_INIT in self.quirks:
            await asyncio.sleep(DELAY_BEFORE_INIT)
        if Quirk.LARGE_SQE in self.quirks:
            raise ControllerError(
                f"{self.device.uri}: {self.quirks.reasons[Quirk.LARGE_SQE]}: submission queue entries of 128 bytes "
                "are not supported"
            )

    async def cap(self) -> Cap:
        """CAP; ControllerGone if it reads all-ones."""
        value = await self.read64(Register.CAP)
        if value == 0xFFFF_FFFF_FFFF_FFFF:
            raise ControllerGone(f"{self.device.uri}: its registers read all ones: the device is gone")
        cap = Cap.from_int(value)
        if cap.crms & 1:
            # CAP.TO only counts up to 127.5 s; a controller that needs longer reports it here (Base
            # 2.0, 3.1.3.21).
            self._with_media = Crto.from_int(self._present(await self.read32(Register.CRTO))).with_media_seconds
        return cap

    def ready_seconds(self, cap: Cap) -> float:
        """How long CSTS.RDY may take to follow CC.EN: CAP.TO or CRTO.CRWMT, the longer. CRTO counts
        once cap() was awaited.
        """
        return max(cap.timeout_seconds, self._with_media)

    async def vs(self) -> Vs:
        return Vs.from_int(await self.read32(Register.VS))

    async def cc(self) -> Cc:
        """CC; ControllerGone if it reads all-ones."""
        return Cc.from_int(self._present(await self.read32(Register.CC)))

    async def csts(self) -> Csts:
        """CSTS; ControllerGone if it reads all-ones."""
        return Csts.from_int(self._present(await self.read32(Register.CSTS)))

    def _present(self, value: int) -> int:
        if value == ALL_ONES:
            raise ControllerGone(f"{self.device.uri}: its registers read all ones: the device is gone")
        return value

    async def snapshot(self) -> dict[str, str]:
        """The registers of the controller's setup, as hexadecimal numbers by name."""
        return {name.upper(): f"{value:#x}" for name, value in (await self._call(self.read_all)).items()}

    async def wait(self, done: Callable[[Csts], bool], seconds: float, what: str, *, fatal: bool) -> Csts:
        """Reads CSTS until `done`, with growing pauses; ControllerTimeout after `seconds`, with
        fatal ControllerFatal once CFS is set.
        """
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        pause = 0.0002
        while True:
            csts = await self.csts()
            if done(csts):
                return csts
            if fatal and csts.cfs:
                raise ControllerFatal(f"{self.device.uri}: CSTS.CFS was set while waiting for {what}")
            if loop.time() >= limit:
                raise ControllerTimeout(
                    f"{self.device.uri}: {what} took longer than {seconds:g} s (CSTS {csts.to_int():#x})"
                )
            await asyncio.sleep(min(pause, max(0.0, limit - loop.time())))
            pause = min(pause * 1.5, 0.02)

    async def disable(self, cap: Cap) -> None:
        """Controller level reset: CC.EN to 0, then CSTS.RDY must become 0 within ready_seconds
        (3.7.2). From then on it moves no data.
        """
        cc = await self.cc()
        if cc.en:
            # A controller that is still on its way to ready isn't disturbed (3.1.3.5: EN is changed
            # when RDY has followed it).
            try:
                await self.wait(
                    lambda csts: csts.rdy or csts.cfs,
                    self.ready_seconds(cap),
                    "CSTS.RDY=1 before the reset",
                    fatal=False,
                )
            except ControllerTimeout:
                pass
            # SHN cleared too, or a controller that was shut down would not start again.
            value = cc.to_int() & ~1 & ~(3 << 14)
            await self.write32(Register.CC, value)
            if Quirk.DELAY_BEFORE_READY in self.quirks:
                await asyncio.sleep(DELAY_BEFORE_READY)
        await self.wait(lambda csts: not csts.rdy, self.ready_seconds(cap), "CSTS.RDY=0 after CC.EN=0", fatal=False)

    async def enable(self, cap: Cap, *, entries: int, asq: int, acq: int, all_command_sets: bool = False) -> None:
        """AQA, ASQ, ACQ, CC, then CSTS.RDY must become 1 within ready_seconds (3.5.1 steps 3 to 6).

        all_command_sets: CC.CSS=110b, else the NVM command set alone (3.1.3.5).
        """
        await self.write32(Register.AQA, Aqa.of(entries).to_int())
        await self.write64(Register.ASQ, asq)
        await self.write64(Register.ACQ, acq)
        # IOSQES 6 and IOCQES 4: entries of 64 and 16 bytes; MPS 0: pages of 4 KiB; AMS 0: round
        # robin.
        css = CommandSetSelected.ALL_SUPPORTED if all_command_sets else CommandSetSelected.NVM
        cc = Cc(en=False, css=css, mps=0, ams=0, shn=0, iosqes=6, iocqes=4)
        await self.write32(Register.CC, cc.to_int())
        await self.write32(Register.CC, cc.to_int() | 1)
        await self.wait(lambda csts: csts.rdy, self.ready_seconds(cap), "CSTS.RDY=1 after CC.EN=1", fatal=True)
        self.programmed = await self._call(self.read_all)
        del self.programmed["csts"]

    def read_all(self) -> dict[str, int]:
        """The controller's setup, by the registers' names in lower case. Blocks if registers are
        messages.
        """
        values = self.device.read_many([(register, 8 if register in WIDE else 4) for register in SHOWN])
        return {register.name.lower(): value for register, value in zip(SHOWN, values, strict=True)}

    async def shut_down(self, seconds: float) -> None:
        """Normal shutdown notification: CC.SHN=01b, then CSTS.SHST must become 10b (3.6.1)."""
        cc = self._present(await self.read32(Register.CC))
        await self.write32(Register.CC, cc & ~(3 << 14) | ShutdownNotification.NORMAL << 14)
        await self.wait(
            lambda csts: csts.shst == ShutdownStatus.COMPLETE, seconds, "CSTS.SHST=10b after CC.SHN", fatal=False
        )


def doorbell_pairs(cap: Cap, bar0_nbytes: int) -> int:
    """For how many queue pairs, including the admin queue, BAR0 has doorbells (PCIe Transport
    1.0, 3.1.2).
    """
    return max(0, (bar0_nbytes - DOORBELL_BASE) // (2 * (4 << cap.dstrd)))


def check_supported(cap: Cap, uri: str, bar0_nbytes: int) -> None:
    """Raises ControllerError for a controller that this driver can't drive, with the reason."""
    if doorbell_pairs(cap, bar0_nbytes) < 2:
        raise ControllerError(
            f"{uri}: BAR0 of {bar0_nbytes:#x} bytes has no doorbells for an I/O queue pair: they are "
            f"{4 << cap.dstrd} bytes apart (CAP.DSTRD {cap.dstrd})"
        )
    if cap.mpsmin > 0:
        raise ControllerError(
            f"{uri}: the smallest memory page is {cap.min_page_size} bytes (CAP.MPSMIN), the driver needs 4096"
        )
    if cap.mqes < 1:
        raise ControllerError(f"{uri}: CAP.MQES is {cap.mqes}, queues need at least two entries")
    if not cap.nvm_command_set and not cap.multiple_command_sets:
        raise ControllerError(f"{uri}: the NVM command set is not supported (CAP.CSS {cap.css:#x})")
