# Abandoned commands that the controller still has.

cdef list left_behind(QueuePair qp, uint32_t nsid, uint64_t lba, uint64_t blocks):
    cdef uint32_t i
    cdef nvq_tracker *t
    cdef Request request
    found = []
    if not qp.has_memory:
        return found
    for i in range(qp.q.n_trackers):
        t = &qp.q.trackers[i]
        if t.state != NVQ_ARMED or t.flags & NVQ_INTERNAL or not changes(&t.sqe, nsid, lba, blocks):
            continue
        if qp.slots[i].batch != NULL:
            forgotten = qp.slots[i].batch.stopped
        elif qp.waiters[i] != NULL:
            request = <Request>qp.waiters[i]
            forgotten = request.state != SENT or request.failed or t.flags & NVQ_ORPHAN
        else:
            forgotten = True
        if forgotten:
            found.append(t.cid)
    return found


cdef bint uses_memory(QueuePair qp, uint64_t iova, uint64_t nbytes) except -1:
    cdef uint32_t i
    cdef Batch batch
    if qp.has_memory:
        for batch in qp.batches:
            if batch.b.data != NULL and not batch.b.bounced:
                if batch.b.iova < iova + nbytes and iova < batch.b.iova + <uint64_t>batch.b.nbytes * batch.b.n:
                    return True
        for i in range(qp.q.n_trackers):
            if qp.waiters[i] != NULL:
                if data_touches(<Request>qp.waiters[i], iova, nbytes):
                    return True
        return streams_use(qp, iova, nbytes)
    return False


cdef void see_off(QueuePair qp) except *:
    leaving, qp.leaving = qp.leaving, None
    staying = []
    gone = []
    for cids, callback in leaving:
        (staying if any([qp.is_out(cid) for cid in cids]) else gone).append((cids, callback))
    if staying:
        qp.leaving = staying
    for _, callback in gone:
        callback()


cdef enum:
    NSID_ALL = 0xffffffff


cdef bint changes(nvq_sqe *sqe, uint32_t nsid, uint64_t lba, uint64_t blocks) noexcept:
    """May this I/O command change one of the blocks? True if that is unknown (NVM Command Set
    1.0, 3.2).
    """
    cdef uint64_t first = sqe.cdw10 | <uint64_t>sqe.cdw11 << 32
    if sqe.nsid != nsid and sqe.nsid != NSID_ALL:
        return False
    if sqe.opcode in (OPC_READ, OPC_COMPARE, OPC_FLUSH, OPC_VERIFY):
        return False
    if sqe.opcode in (OPC_WRITE, OPC_WRITE_UNCORRECTABLE, OPC_WRITE_ZEROES):
        return first < lba + blocks and lba < first + (sqe.cdw12 & 0xffff) + 1
    return True


cdef void show_waiters() except *:
    cdef QueuePair blank = QueuePair.__new__(QueuePair)
    cdef char *at = <char *><PyObject *>blank
    nva_traverse_install(QueuePair, <char *>&blank.waiters - at, <char *>&blank.q.n_trackers - at)

show_waiters()
