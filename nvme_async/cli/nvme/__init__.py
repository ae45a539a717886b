"""The sub-commands of nvme-cli 2.13, by its names, options and JSON keys.

Most are rows of tables: `pages` (what is read and shown), `changes` (what is sent), `zones`. Each
opens the DEVICE, or talks to the process that has it (`nvme-async --attach SOCKET`).
"""
