"""Queues in the controller's memory, as a predecessor left them: found again, or the restore is
refused.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from nvme_async.device import Device
from nvme_async.driver.pcie.cmb_queues import CmbLayout, CmbQueues
from nvme_async.errors import DeviceError, RestoreRefused
from nvme_async.keepalive.state import CmbState
from nvme_async.spec.registers import Cmbmsc, Cmbsz, Register


def layout_of(state: CmbState) -> CmbLayout:
    return CmbLayout(**attrs.asdict(state, filter=lambda field, _: field.name != "extra"))


def find_queues(device: Device, state: CmbState, refuse: Callable[[str], RestoreRefused]) -> CmbQueues:
    """Maps them. May block. Changes nothing."""
    layout = layout_of(state)
    control = Cmbmsc.from_int(device.read64(Register.CMBMSC))
    place = (device.read32(Register.CMBLOC), device.read32(Register.CMBSZ))
    if not (control.cre and control.cmse) or control.cba << 12 != layout.address:
        raise refuse(
            f"its Controller Memory Buffer, which has its queues, is not at {layout.address:#x} "
            f"(CMBMSC {control.to_int():#x})"
        )
    if place != (layout.cmbloc, layout.cmbsz):
        raise refuse(
            f"its Controller Memory Buffer is not where it was: CMBLOC {place[0]:#x} and CMBSZ {place[1]:#x}, "
            f"not {layout.cmbloc:#x} and {layout.cmbsz:#x}"
        )
    if not 0 < layout.nbytes <= Cmbsz.from_int(layout.cmbsz).nbytes:
        raise refuse(f"the saved state has queues beyond the end of the Controller Memory Buffer: {layout}")
    try:
        return CmbQueues(layout, device.map_bar(layout.bar, layout.offset, layout.nbytes))
    except DeviceError as error:
        raise refuse(str(error)) from error
