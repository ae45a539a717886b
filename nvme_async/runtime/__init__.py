"""Helpers for event loops, threads, forks and sockets; nothing here knows NVMe."""
