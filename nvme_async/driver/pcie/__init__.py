"""The PCIe transport: rings, doorbells and PRPs in DMA pools, one queue pair for each event loop."""
