"""The keeper: a process that holds the descriptors of controllers between two drivers.

As long as some process has the pool's memfd, the device's descriptors and the eventfds open, a
controller keeps running, even without a driver. The keeper never reads what it holds. It needs only
Python's standard library and nothing else of this package (only client.py, the driver's side,
does), and runs as a separate program, `python -I -S …/keeper --socket PATH`: a release of the
driver that can't even be imported doesn't affect it.

Protocol, on a SOCK_SEQPACKET Unix socket: one JSON object per message, with descriptors
(SCM_RIGHTS).

    {"op": "put", "name": N, "fds": [label, …], "more": false}   + descriptors
        A deposit may take several messages, with "more" in all except the last, which alone is
        answered. Without any descriptors it reserves N.
    {"op": "get", "name": N, "wait": seconds}
        → {"ok": true, "fds": [label, …], "more": false} + descriptors
    {"op": "release", "name": N}
        The owner releases it and stays alive: it is free for a successor.
    {"op": "give", "name": N, "pid": P}
        The owner releases it for that process alone.
    {"op": "drop", "name": N, "force": false}
        The owner no longer needs it. force: also drops an orphaned deposit.
    {"op": "list"}
        → {"ok": true, "deposits": […], "more": false}
    a refusal
        ← {"ok": false, "code": "owned"|"limit"|"invalid", "error": …, "pid": …}

A deposit is owned (its driver is alive), orphaned (free for one successor), claimed (handed to a
successor that hasn't deposited yet), or reserved (no descriptors: its owner is about to bring the
controller up). A get for an unknown name reserves it for the requester, so that two drivers can't
both start. Owners are processes: a deposit is orphaned when its process has died, as a pidfd
reports. A closed connection isn't enough, because a living driver must never get a successor. (An
exec closes it: the same process may connect again and get what it owns.) Without pidfds (Linux
before 5.3) the end of the connection must suffice.
"""
