"""Security Send and Security Receive (Base 2.1, 5.1.23 and 5.1.24), and discovery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_async.spec import commands
from nvme_async.spec.tcg import Discovery0

if TYPE_CHECKING:
    from nvme_async.driver.controller import Controller

_TCG, _DISCOVERY = 0x01, 0x0001
_BYTES = 512


async def send_security(
    controller: Controller, secp: int, spsp: int, data: bytes, *, nssf: int = 0, nsid: int = 0
) -> None:
    """Sends data of a security protocol (SECP, SPSP: SPC-4)."""
    await controller.admin(commands.security_send(secp, spsp, len(data), nssf, nsid), data)


async def receive_security(
    controller: Controller, secp: int, spsp: int, nbytes: int, *, nssf: int = 0, nsid: int = 0
) -> bytes:
    """`nbytes` of a security protocol's answer."""
    completion = await controller.admin(commands.security_receive(secp, spsp, nbytes, nssf, nsid))
    assert completion.data is not None
    return completion.data


async def security_protocols(controller: Controller) -> tuple[int, ...]:
    """The security protocols that the controller supports (protocol 00h; SPC-4, 7.7.1.2)."""
    answer = await receive_security(controller, 0, 0, _BYTES)
    count = min(int.from_bytes(answer[6:8], "big"), len(answer) - 8)
    return tuple(answer[8 : 8 + count])


async def discover_security(controller: Controller, nbytes: int = 2048) -> Discovery0:
    """TCG Storage level 0 discovery: which features the drive has, and whether it is locked."""
    return Discovery0.decode(await receive_security(controller, _TCG, _DISCOVERY, nbytes))
