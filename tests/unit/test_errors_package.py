"""nvme_async.errors is one module to its users, whatever files it is written in."""

from __future__ import annotations

import pickle
import re

import nvme_async
from nvme_async import errors


def test_each_class_names_the_public_module() -> None:
    for name in errors.__all__:
        assert getattr(errors, name).__module__ == "nvme_async.errors", name
        assert getattr(nvme_async, name) is getattr(errors, name)


def test_a_pickled_error_names_no_private_module() -> None:
    data = pickle.dumps(errors.QueueShutdown("closed"))
    assert b"errors._" not in data
    again = pickle.loads(data)
    assert type(again) is errors.QueueShutdown
    assert str(again) == "closed"


def test_each_class_is_in_the_list() -> None:
    pending = [errors.NvmeError]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if re.fullmatch(r"nvme_async\.errors(\..*)?", cls.__module__):
            assert cls.__name__ in errors.__all__
