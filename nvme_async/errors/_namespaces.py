"""A namespace is not the one that a handle was made for."""

from __future__ import annotations

from nvme_async.errors._root import NvmeError


class NamespaceChanged(NvmeError):
    """The namespace has been formatted: a request that was made for the old format (block size,
    metadata, protection) ended without a result. It was not sent, or its outcome is unknown
    because the format changed while it was in flight. New requests use the new format.
    """


class NamespaceReplaced(NamespaceChanged):
    """Another namespace has this one's number: NGUID, EUI-64 or UUID differ. The handle can't be
    used any more; the new namespace has its own handle.
    """


class NoSuchNamespace(NvmeError, KeyError):
    """`controller.namespaces` has no active namespace of that number, but those named."""

    def __str__(self) -> str:  # KeyError would quote it
        return str(self.args[0])
