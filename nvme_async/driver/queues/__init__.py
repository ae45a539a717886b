"""The common code of transports whose commands live in rings: native queue pairs on event loops.

A transport adds the creation and deletion of one queue pair (QueueMaker) and its own part of the
set (QueueSet). Nothing here knows PCIe or TCP.
"""
