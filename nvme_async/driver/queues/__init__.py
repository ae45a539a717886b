"""What transports share whose commands live in rings: native queue pairs on event loops.

A transport adds how one queue pair comes and goes (QueueMaker) and what is its own of the set
(QueueSet). Nothing here knows PCIe or TCP.
"""
