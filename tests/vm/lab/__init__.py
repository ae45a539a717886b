"""The VM lab: QEMU's NVMe controllers behind an emulated IOMMU, for tests over real VFIO on any
machine.

`packages` installs what the host needs, `image` builds and caches the guest, `wheel` builds the
tree for it, `drives` defines the controllers, `machine` boots the guest, `channel` answers the
guest's requests, `results` reads its results. Only the standard library is used, so that any Python
3.11 can run it.
"""
