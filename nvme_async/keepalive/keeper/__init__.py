"""The keeper: a process that holds the descriptors of controllers while their drivers come and go.

As long as somebody has the pool's memfd, the device's descriptors and the eventfds open, a
controller runs on, whatever becomes of its driver. The keeper never reads what it holds. It needs
Python's standard library and nothing else of this package (only client.py, the driver's side,
does), and runs as a program of its own, `python -I -S …/keeper --socket PATH`: a release of the
driver that can't even be imported doesn't touch it.

Protocol, on a SOCK_SEQPACKET Unix socket: one JSON object in each message, descriptors beside it
(SCM_RIGHTS).

    {"op": "put", "name": N, "fds": [label, …], "more": false}   + descriptors. A deposit may take
    several messages, with "more" in all but
                                                                  the last, which alone is answered.
                                                                      No descriptors at all:
                                                                      reserves N
    {"op": "get", "name": N, "wait": seconds}                    → {"ok": true, "fds": [label, …],
    "more": false} + descriptors {"op": "release", "name": N}                                 the
    owner lets go and lives on: free for a successor {"op": "give", "name": N, "pid": P}
    the owner lets go in favour of that process alone {"op": "drop", "name": N, "force": false}
    the owner has no more use for it. force: also what is orphaned {"op": "list"}
    → {"ok": true, "deposits": […], "more": false} a refusal
    ← {"ok": false, "code": "owned"|"limit"|"invalid", "error": …, "pid": …}

A deposit is owned (its driver lives), orphaned (free for one successor), claimed (handed to a
successor that hasn't deposited yet), or
reserved (no descriptors: its owner is about to bring the controller up). What a get finds nothing
for becomes reserved by whoever asked, so
that two drivers can't both start. Owners are processes: theirs is orphaned when the process has
died, which a pidfd tells; that the connection has closed isn't enough, a driver that lives must
never be followed by a second one. (An exec closes it: the same process may connect anew and get
what it owns.) Without pidfds (Linux before 5.3) the connection's end has to do.
"""
