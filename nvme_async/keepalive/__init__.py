"""Keepalive: replace or lose the process, keep the controller running.

restore(bundle)     goes on with a running controller; nvme_async.take_over() does it across a socket
Bundle              what passes from process to process
Adopted             a command of the predecessor, in controller.adopted
inherited()         what an exec left for this process
"""

from __future__ import annotations

from nvme_async.keepalive.adopted import Adopted, AdoptedCommands
from nvme_async.keepalive.bundle import Bundle, receive_bundle, send_bundle
from nvme_async.keepalive.execute import inherited
from nvme_async.keepalive.restoration import restore

__all__ = ["Adopted", "AdoptedCommands", "Bundle", "inherited", "receive_bundle", "restore", "send_bundle"]
