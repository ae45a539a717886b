"""The VM lab: QEMU's NVMe controllers behind an emulated IOMMU, for tests over real VFIO on any
machine.

`packages` installs what the host needs, `image` builds and caches the guest, `wheel` builds the
tree for it, `drives` says which controllers there are, `machine` boots it all, `channel` answers
what the guest asks of the host, `results` reads what comes back. Only the standard library is used,
so that any Python 3.11 can run it.
"""
