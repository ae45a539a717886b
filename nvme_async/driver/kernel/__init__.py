"""The kernel keeps the drive: io_uring on its NVMe nodes, on block devices and on files."""
