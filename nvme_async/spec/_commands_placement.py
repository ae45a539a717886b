"""I/O Management Receive and Send (Base 2.1, 7.3 and 7.4), Set and Get Features of Flexible Data
Placement (5.1.25.1.20 and 5.1.25.1.21).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from nvme_async.spec._command import U8, U16, U32, Command, check, check_dwords
from nvme_async.spec.opcodes import AdminOpcode, Feature, IoManagementOperation, NvmOpcode

MAX_PLACEMENTS = 1 << 16
MAX_PLACEMENT_HANDLES = 128


def io_management_receive(nsid: int, operation: int, nbytes: int, specific: int = 0) -> Command:
    """I/O Management Receive (Base 2.1, 7.3): up to `nbytes`, a multiple of 4. See
    IoManagementOperation; the data of RUH_STATUS is `fdp.RuhStatus`.
    """
    return Command(
        opcode=NvmOpcode.IO_MANAGEMENT_RECEIVE,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=check("operation", operation, 0, U8) | check("specific", specific, 0, U16) << 16,
        cdw11=check_dwords("nbytes", nbytes),
        data_length=nbytes,
    )


def reclaim_unit_handle_update(nsid: int, placements: int) -> Command:
    """I/O Management Send (Base 2.1, 7.4) of a reclaim unit handle update: so many placement
    identifiers get new reclaim units. `placement_list` packs them.
    """
    count = check("placements", placements, 1, MAX_PLACEMENTS)
    return Command(
        opcode=NvmOpcode.IO_MANAGEMENT_SEND,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=IoManagementOperation.RUH_STATUS | (count - 1) << 16,
        data_length=2 * count,
    )


def placement_list(placements: Sequence[int]) -> bytes:
    """The payload of a reclaim unit handle update: 16 bits a placement identifier."""
    for placement in placements:
        check("placement", placement, 0, U16)
    check("number of placements", len(placements), 1, MAX_PLACEMENTS)
    return struct.pack(f"<{len(placements)}H", *placements)


def with_placement_handles(payload: bytes, handles: Sequence[int]) -> bytes:
    """The payload of a Namespace Management that creates a namespace, with its list of placement
    handles (NVM Command Set 1.1, 4.1.6): the reclaim unit handle of each.
    """
    for handle in handles:
        check("reclaim unit handle", handle, 0, U16)
    check("number of placement handles", len(handles), 0, MAX_PLACEMENT_HANDLES)
    page = bytearray(payload.ljust(4096, b"\0"))
    struct.pack_into("<H", page, 392, len(handles))
    struct.pack_into(f"<{len(handles)}H", page, 512, *handles)
    return bytes(page)


def set_fdp(endurance_group: int, enabled: bool, configuration: int = 0, save: bool = False) -> Command:
    """Set Features 1Dh (Base 2.1, 5.1.25.1.20): Flexible Data Placement of an endurance group,
    which must have no namespaces. configuration: index into the FDP Configurations log page.
    """
    return Command(
        opcode=AdminOpcode.SET_FEATURES,
        cdw10=Feature.FLEXIBLE_DATA_PLACEMENT | save << 31,
        cdw11=check("endurance_group", endurance_group, 0, U16),
        cdw12=int(enabled) | check("configuration", configuration, 0, U8) << 8,
        admin=True,
    )


def get_fdp(endurance_group: int) -> Command:
    """Get Features 1Dh; completion dword 0 is a `fdp.FdpMode`."""
    return Command(
        opcode=AdminOpcode.GET_FEATURES,
        cdw10=Feature.FLEXIBLE_DATA_PLACEMENT,
        cdw11=check("endurance_group", endurance_group, 0, U16),
        admin=True,
    )


def set_fdp_events(nsid: int, handle: int, events: int, enabled: bool, save: bool = False) -> Command:
    """Set Features 1Eh (Base 2.1, 5.1.25.1.21): which FDP events a placement handle logs. Payload:
    `events` event types, one byte each.
    """
    return Command(
        opcode=AdminOpcode.SET_FEATURES,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=Feature.FDP_EVENTS | save << 31,
        cdw11=check("handle", handle, 0, U16) | check("events", events, 1, U8) << 16,
        cdw12=int(enabled),
        data_length=events,
        admin=True,
    )


def get_fdp_events(nsid: int, handle: int, events: int = U8) -> Command:
    """Get Features 1Eh: up to so many descriptors, `fdp.decode_supported_events`; completion
    dword 0 is their number.
    """
    return Command(
        opcode=AdminOpcode.GET_FEATURES,
        nsid=check("nsid", nsid, 1, U32),
        cdw10=Feature.FDP_EVENTS,
        cdw11=check("handle", handle, 0, U16) | check("events", events, 1, U8) << 16,
        data_length=2 * events,
        admin=True,
    )
