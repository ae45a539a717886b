"""A benchmark with fio's job language and fio's reports, which drives namespaces from asyncio.

`benchmarks/fio.py` and `nvme-async bench` are this package. One direction of reading it:

    options     every option: its type, default, parser and help
    jobfile     ini files and the command line → jobs
    plan        a job and a namespace → the loop's parameters: generator, limits, buffers
    engine      the loops that await I/O
    verify      the content of written blocks, and its check
    run         threads, groups, time, ETA
    stats       the measurements
    output_*    fio's text, JSON and terse forms
    main        the program
"""
