"""Keepalive: replace or lose the process, keep the controller running.

restore(bundle)     continues with a running controller; over a socket: nvme_async.take_over()
Bundle              the descriptors that are passed between processes
Adopted             a command of the predecessor, in controller.adopted
inherited()         the bundles that an exec left for this process
"""

from __future__ import annotations

from nvme_async.keepalive.adopted import Adopted, AdoptedCommands
from nvme_async.keepalive.bundle import Bundle, receive_bundle, send_bundle
from nvme_async.keepalive.execute import inherited
from nvme_async.keepalive.restoration import restore

__all__ = ["Adopted", "AdoptedCommands", "Bundle", "inherited", "receive_bundle", "restore", "send_bundle"]
