"""The PCIe transport: rings, doorbells and PRPs in DMA pools, one queue pair per event loop."""
