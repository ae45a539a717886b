"""NVMe/TCP (NVM Express TCP Transport 1.0): capsules on a socket for each queue."""
