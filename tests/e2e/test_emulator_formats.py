"""LBA formats and names of emulated namespaces, as a driver sees them."""

from __future__ import annotations

from driving import FAST, faults

import nvme_async
from nvme_async.spec import commands
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.opcodes import Cns

ADDRESS = "emulated:size=16MiB,formats=512/4096/512+8/4096+64"


async def identify(controller: nvme_async.Controller, nsid: int = 1) -> IdentifyNamespace:
    completion = await controller.admin(commands.identify(Cns.NAMESPACE, nsid))
    assert completion.data is not None
    return IdentifyNamespace.decode(completion.data)


async def test_format_chooses_among_the_configured_formats() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        before = await identify(controller)
        assert [(one.block_size, one.ms) for one in before.supported_formats] == [
            (512, 0),
            (4096, 0),
            (512, 8),
            (4096, 64),
        ]
        assert before.lbaf_index == 1
        await controller.admin(commands.format_nvm(1, 3, mset=True))
        after = await identify(controller)
        assert (after.lbaf_index, after.extended_block_size, after.nsze) == (3, 4160, before.nsze)


async def test_namespace_identifiers_can_be_configured() -> None:
    async with nvme_async.open(ADDRESS, **FAST) as controller:
        before = await identify(controller)
        faults(controller).change_identity(1, nguid=bytes(range(16)), eui64=bytes(8))
        after = await identify(controller)
        assert after.nguid == bytes(range(16)) != before.nguid
        assert after.eui64 == bytes(8) != before.eui64
        assert after.nsze == before.nsze
