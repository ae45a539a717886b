"""The kernel drives the device: io_uring on its NVMe nodes, on block devices and on files."""
