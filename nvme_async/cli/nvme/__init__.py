"""The sub-commands of nvme-cli 2.13, by its names, options and JSON keys.

Most are rows of tables: `pages` (read and shown), `changes` (sent), `zones`. Each opens the DEVICE,
or uses the process that has it (`nvme-async --attach SOCKET`).
"""
