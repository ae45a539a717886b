"""The public methods of a controller: few, in groups; everything else belongs to the driver."""

from __future__ import annotations

import inspect

import nvme_async

GROUPS = {
    "life": {"bring_up", "close", "release", "reset", "forget_in_child"},
    "commands": {"admin", "rescan", "events"},
    "memory": {"alloc", "buffer", "register", "unclaimed", "claim", "validate_restore"},
    "other processes": {"bundle", "save", "exec", "handover", "share"},
    "state": {"inspect"},
}


def test_the_public_methods() -> None:
    methods = {
        name for name, _ in inspect.getmembers(nvme_async.Controller, inspect.isfunction) if not name.startswith("_")
    }
    assert methods == set().union(*GROUPS.values())
    assert len(methods) <= 20
