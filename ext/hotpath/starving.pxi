# Requests for whose data the pool has no bounce page. They wait until a command releases one, or
# the controller's memory has grown.

cdef object starve(QueuePair qp, int k, bint some):
    """A future that is done when it is worth asking for a piece of class k again; who takes the
    turn calls take_turn() first.

    some: the caller has a few already, and continues with those if the memory can't grow; then this
    returns None. Raises OutOfDmaMemory if no piece will ever come: the memory can't grow, and no
    command has one.
    """
    if not qp.growing:
        try:
            if qp.on_starved is None:
                raise OutOfDmaMemory(f"queue {qp.qid}: no room for a transfer of {<uint64_t>4096 << k} bytes")
            qp.on_starved(<uint64_t>4096 << k)
            qp.growing = True
        except OutOfDmaMemory:
            if some:
                return None
            if qp.bounce.n_taken == 0:
                raise
    future = qp.create_future()
    qp.starved.append(future)
    qp.ring_now()
    return future


cdef void feed(QueuePair qp, Py_ssize_t n) except *:
    """As many pieces may be there: who waits for one tries again, first come first served."""
    while n > 0 and qp.starved:
        future = qp.starved.popleft()
        if not future.done():
            qp.n_granted += 1
            n -= 1
            wake(future)


def fed(QueuePair qp):
    """The memory has grown, or can't: the end of what on_starved() began. On the queue pair's
    thread.
    """
    qp.growing = False
    feed(qp, len(qp.starved))
