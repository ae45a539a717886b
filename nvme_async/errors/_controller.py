"""The controller as a whole failed: every command on it fails with one of these."""

from __future__ import annotations

from nvme_async.errors._root import NvmeError


class ControllerError(NvmeError):
    """The controller as a whole failed; every command on it fails with this."""


class ControllerGone(ControllerError, ConnectionError):
    """The device is gone: registers read all-ones, or the peer closed its socket."""


class ControllerTimeout(ControllerError, TimeoutError):
    """The controller, or the device behind the seam, did not answer in its time."""


class AdminRefused(ControllerError):
    """No admin command is sent after the bring-up: the controller is driven fused."""


class DeviceTimeout(ControllerTimeout):
    """The device layer, and so its registers, did not answer in time: a stopped vfio-user peer."""


class ControllerFatal(ControllerError):
    """CSTS.CFS is set, or the controller broke the protocol (a forged command id, for example)."""


class DeviceError(ControllerError, OSError):
    """The device layer refused: an ioctl or a vfio-user message failed; which, and why."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ControllerReplaced(ControllerError):
    """Another controller is at the address: serial number, model, subsystem NQN, controller id or
    PCI ids differ. Nothing meant for the first one was sent to it; open it, or ask the manager for
    a new handle.
    """
