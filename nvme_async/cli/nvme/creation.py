"""What create-ns sends: the host's fields of a new namespace, those of its command set included."""

from __future__ import annotations

import struct
from typing import Any

import click

from nvme_async.driver.management import attach_namespace
from nvme_async.driver.management.formats import find_format
from nvme_async.emulator.parsing import parse_size
from nvme_async.spec import commands
from nvme_async.spec.identify import IdentifyNamespace
from nvme_async.spec.opcodes import NSID_ALL, Cns, NamespaceManagementAction

# Offsets of the command sets' fields (NVM 1.1, 4.1.6; ZNS 1.2, 5.1).
_LBSTM, _NPHNDLS, _ZNS, _HANDLES = 384, 392, 499, 512
_MOST_HANDLES = 128


def _blocks(more: dict[str, Any], name: str, block_size: int) -> int | None:
    """A number of blocks, from the one option or the other."""
    text = more[f"{name}_si"]
    if text is None:
        given: int | None = more[name]
        return given
    nbytes = parse_size(text, f"--{name}-si")
    if not block_size or nbytes % block_size:
        raise click.UsageError(f"--{name}-si {text} is no multiple of the block size of {block_size}")
    return nbytes // block_size


async def create(controller: Any, lbaf: int | None, handles: list[int], attach: bool, more: dict[str, Any]) -> int:
    """Creates the namespace and returns its id."""
    completion = await controller.admin(commands.identify(Cns.NAMESPACE, NSID_ALL))
    common = IdentifyNamespace.decode(completion.data)
    if lbaf is not None and more["block_size"] is not None:
        raise click.UsageError("--flbas and --block-size exclude each other")
    flbas = lbaf or 0
    if more["block_size"] is not None:
        index = find_format(common, more["block_size"], 0)
        flbas = index & 0xF | (index >> 4) << 5
    block_size = common.lbafs[flbas & 0xF | (flbas >> 5 & 3) << 4].block_size
    blocks = _blocks(more, "nsze", block_size)
    assert blocks is not None
    capacity = _blocks(more, "ncap", block_size)
    if len(handles) > _MOST_HANDLES:
        raise click.UsageError(f"--phndls: {len(handles)} are more than {_MOST_HANDLES}")
    try:
        page = bytearray(
            IdentifyNamespace(
                nsze=blocks,
                ncap=blocks if capacity is None else capacity,
                flbas=flbas,
                dps=more["dps"],
                nmic=more["nmic"],
                anagrpid=more["ana"],
                nvmsetid=more["nvmset"],
                endgid=more["endgid"],
            ).encode()
        )
        struct.pack_into("<QH", page, _LBSTM, more["lbstm"], len(handles))
        struct.pack_into(f"<{len(handles)}H", page, _HANDLES, *handles)
        if more["azr"] or more["rar"] or more["ror"] or more["rnumzrwa"]:
            struct.pack_into("<BIII", page, _ZNS, more["azr"], more["rar"], more["ror"], more["rnumzrwa"])
        made = commands.namespace_management(NamespaceManagementAction.CREATE, csi=more["csi"])
    except (ValueError, struct.error) as error:
        raise click.UsageError(str(error)) from None
    nsid: int = (await controller.admin(made, bytes(page))).dw0
    if attach:
        await attach_namespace(controller, nsid)
    return nsid
