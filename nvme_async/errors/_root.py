"""The root of all errors."""

from __future__ import annotations


class NvmeError(Exception):
    """The root of all errors of this package."""
