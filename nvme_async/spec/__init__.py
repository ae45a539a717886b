"""NVMe facts as types: registers, opcodes, commands, completions, status codes, identify, log and
feature
pages.

Sources: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0, Zoned Namespace
Command Set
Specification 1.1, written here as "Base", "NVM" and "ZNS". Docstrings cite sections, which are the
same in 2.0 and its later letters, and not figures, whose numbers are not.

Nothing is imported from here; use the modules: `from nvme_async.spec import commands, registers`.

    registers    offsets and bit fields of the controller's properties, doorbell offsets
    opcodes      opcodes, identifiers of Identify, log pages and features, small enumerations
    commands     Command (a submission queue entry) and a builder for each command, payload builders
    completion   Completion (a completion queue entry), asynchronous events
    status       status codes and their texts
    identify     identify data structures
    logs         log pages
    lba_status   Get LBA Status and its log page
    features     feature values
    reservations reservation payloads and the report
    zns          zoned namespaces: identify data, zone descriptors, reports

Values keep the specification's lower-case acronyms and its encoding (`cap.to` is in 500 ms units,
`mqes` is zero-based); properties with plain names give useful units (`cap.timeout_seconds`,
`cap.max_queue_entries`). All types are immutable, so they may be shared between threads.
"""
