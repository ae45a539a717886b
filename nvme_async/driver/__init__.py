"""One NVMe controller: lifecycle, namespaces, discovery, events, recovery, and the transports
below.
"""
