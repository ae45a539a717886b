"""Other processes: predecessors and successors, keepers, owners that lend queue pairs."""

from __future__ import annotations

from nvme_async.errors._root import NvmeError


class HandedOver(NvmeError, ConnectionError):
    """This process handed the controller to a successor.

    sent: True: the controller has the command, and its result belongs to the successor. False: it
        was never sent.
    """

    def __init__(self, message: str, *, sent: bool = False) -> None:
        self.sent = sent
        super().__init__(message)


class KeeperError(NvmeError, ConnectionError):
    """The keeper is missing, doesn't answer, or refused.

    Attributes:
        code: why it refused: "owned" (by another living process), "limit", "invalid"; "" if it did
            not refuse.
        pid: the process that a refusal is about, or None.
    """

    def __init__(self, text: str, *, code: str = "", pid: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.pid = pid


class LeaseError(NvmeError, PermissionError):
    """The process that shares a controller (nvme_async.sharing) refused a worker's request.

    Attributes:
        code: why: "full" (no more workers or queue pairs), "quota" (bytes or entries), "policy" (an
            admin command that workers may not send), "unknown" (there is no such lease), "revoked",
            "stale" (the controller was reset meanwhile), "invalid" (the message is invalid),
            "version" (of the protocol), "failed" (the controller), "busy" (namespaces are being
            changed).
    """

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class InvalidSavedState(NvmeError, ValueError):
    """A pool or a saved state is truncated, altered, foreign or of an unknown version; it was
    refused, not changed.
    """


class RestoreRefused(NvmeError):
    """A predecessor's running controller can't be taken over: another drive, changed limits, a
    state that doesn't match. The controller was left as it was; the message gives the reason.
    """
