"""What this process asked for: options, memory, objects that are closed."""

from __future__ import annotations

from nvme_async.errors._root import NvmeError


class QueueShutdown(NvmeError):
    """The queue pair, namespace handle or controller is closed."""


class ConfigurationError(NvmeError, ValueError):
    """A URI, an option or an environment variable is invalid; the message names the value and
    the valid ones.
    """


class OutOfDmaMemory(NvmeError, MemoryError):
    """No free run of pages in the pool is long enough. The message gives the requested size, the
    free bytes, and the longest run.
    """
