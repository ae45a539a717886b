"""NVMe/TCP (NVM Express TCP Transport 1.0): capsules on one socket per queue."""
