# The one-command fast path of a namespace: argument checks and a filled Request, nothing else.

cdef enum:
    OPC_FLUSH = 0x00
    OPC_WRITE = 0x01
    OPC_READ = 0x02
    OPC_WRITE_UNCORRECTABLE = 0x04
    OPC_COMPARE = 0x05
    OPC_WRITE_ZEROES = 0x08
    OPC_VERIFY = 0x0c

cdef object get_running_loop


cdef class NamespaceCore:
    """The base class of nvme_async.Namespace: read, readinto and write of one command's size,
    and the lookup of the running loop's queue pair.

    A subclass handles everything else by overriding _slow(method, args, kwargs) for a loop that has
    no queue pair yet, and _split(method, lba, buffer-or-blocks, fua) for requests over max_blocks.
    Both return awaitables. Each request remembers the geometry that it was sized for
    (geometry.pxi).
    """

    cdef readonly uint32_t nsid
    cdef readonly uint64_t blocks          # NSZE
    cdef readonly uint32_t block_size      # bytes
    cdef readonly uint32_t max_blocks      # of one command
    cdef readonly bint has_metadata        # each block has some: _moved() does the rest
    cdef int block_shift
    cdef dict queues                       # loop → QueuePair; the controller's, shared by its namespaces
    cdef readonly object _gone             # exception, once removed
    cdef readonly Geometry geometry        # what requests are sized for
    cdef QueuePair last                    # the queue pair used last, a cache in front of `queues`

    def _configure(self, uint32_t nsid, uint64_t blocks, uint32_t block_size, uint32_t max_blocks, dict queues):
        if block_size < 512 or block_size & (block_size - 1):
            raise ValueError(f"a block size of {block_size} bytes is not a power of two of at least 512")
        self.nsid, self.blocks, self.block_size, self.max_blocks, self.queues = nsid, blocks, block_size, max_blocks, queues
        if self.geometry is None or self.geometry.state == EXPIRED:
            self.geometry = Geometry.__new__(Geometry)
        self.block_shift = 0
        while (1 << self.block_shift) < block_size:
            self.block_shift += 1

    def _set_metadata(self, bint has_metadata):
        self.has_metadata = has_metadata

    def _set_gone(self, exception):
        """New requests fail with `exception`, earlier ones continue. None: new ones are possible
        again.
        """
        self._gone = exception

    def _expire(self, exception):
        """Requests that were made fail with `exception`, sent or not. New ones need _configure()
        first, which starts a new geometry.
        """
        self.geometry.expire(exception)

    @property
    def nbytes(self):
        """Size of the namespace in bytes."""
        return self.blocks << self.block_shift

    @cython.final
    cdef inline QueuePair queue(self):
        """The running loop's queue pair, or None."""
        cdef QueuePair qp = self.last
        if qp is not None and qp.is_mine():
            return qp
        qp = self.queues.get(get_running_loop())
        if FT_GLOBAL_LOCK:          # without one, a thread could drop what another is about to take from here
            self.last = qp
        return qp

    @cython.final
    cdef inline Request make(self, uint8_t opcode, uint64_t lba, uint64_t blocks):
        cdef Request request
        cdef QueuePair qp = self.queue()
        if qp is None:
            return None
        request = Request.__new__(Request)
        request.qp = qp
        # Read before the sizes: if the format changes meanwhile, this is the expired one.
        request.geometry = self.geometry
        # Request.__new__ zeroes; the freelist does too.
        request.sqe.opcode = opcode
        request.sqe.nsid = self.nsid
        request.sqe.cdw10 = <uint32_t>lba
        request.sqe.cdw11 = <uint32_t>(lba >> 32)
        request.sqe.cdw12 = <uint32_t>(blocks - 1)
        request.nbytes = blocks << self.block_shift
        return request

    @cython.final
    cdef inline int check_range(self, uint64_t lba, uint64_t blocks, uint8_t opcode) except -1:
        if self._gone is not None:
            raise self._gone
        if blocks == 0:
            raise ValueError("blocks is 0, must be 1 or more")
        if lba >= self.blocks or blocks > self.blocks - lba:
            raise self._out_of_range(opcode, lba, blocks)
        return 0

    def read(self, lba, blocks=1, *, bint fua=False, metadata=None, protect=None):
        """Reads `blocks` logical blocks from `lba`; the result is a new bytes object of blocks *
        block_size bytes.

        fua: Force Unit Access. metadata: a writable buffer for the blocks' metadata. protect: a
        Protect, for namespaces with protection information; without it the controller checks it and
        strips it. More than max_blocks are read by several commands at once (NVM Command Set 1.0,
        3.2.4). Raises LbaOutOfRange, MediaError and other CommandErrors, ControllerError,
        CommandTimeout.
        """
        cdef uint64_t first = check_u64(lba, "lba"), count = check_u64(blocks, "blocks")
        self.check_range(first, count, OPC_READ)
        if self.has_metadata or metadata is not None or protect is not None:
            return self._moved("read", first, count, fua, metadata, protect)
        if count > self.max_blocks:
            return self._split("read", lba, blocks, fua)
        cdef Request request = self.make(OPC_READ, first, count)
        if request is None:
            return self._slow("read", (lba, blocks), {"fua": fua})
        request.kind = READ_BYTES
        request.flags = NVQ_TO_HOST
        if fua:
            request.sqe.cdw12 |= 1u << 30
        request.state = NEW
        return request

    def readinto(self, lba, buffer, *, bint fua=False, metadata=None, protect=None):
        """Fills `buffer` (writable, C-contiguous, a multiple of the block size) from `lba` on;
        the result is its length in bytes.

        The device itself writes memory from controller.alloc() or registered with the controller;
        other memory goes through a bounce page and is changed only on success. The buffer is held
        until the controller is done with it, also if the awaiter is cancelled.
        """
        if self.has_metadata or metadata is not None or protect is not None:
            return self._moved("readinto", check_u64(lba, "lba"), buffer, fua, metadata, protect)
        return self.transfer("readinto", OPC_READ, READ_INTO, NVQ_TO_HOST, lba, buffer, fua)

    def write(self, lba, data, *, bint fua=False, metadata=None, protect=None, placement=None, stream=None):
        """Writes `data` (any buffer, a multiple of the block size) from `lba` on (NVM Command
        Set 1.0, 3.2.6). fua: Force Unit Access. placement: a placement identifier; stream: of the
        Streams directive.

        Memory that the device can access is read in place and must not be changed meanwhile; other
        memory is copied when the write starts. Cancelling it (wait_for, a task group) doesn't
        recall it: it may still be executed, also after a newer write to the same blocks was
        acknowledged. Await settled(lba, blocks) before writing them again.
        """
        if placement is not None or stream is not None:
            return self._directed(check_u64(lba, "lba"), data, fua, metadata, protect, placement, stream)
        if self.has_metadata or metadata is not None or protect is not None:
            return self._moved("write", check_u64(lba, "lba"), data, fua, metadata, protect)
        return self.transfer("write", OPC_WRITE, WRITE_FROM, NVQ_FROM_HOST, lba, data, fua)

    def compare(self, lba, data, *, bint fua=False, metadata=None, protect=None):
        """Compares `data` with the media from `lba` on (NVM Command Set 1.0, 3.2.1).
        CompareFailure if they differ.
        """
        if self.has_metadata or metadata is not None or protect is not None:
            return self._moved("compare", check_u64(lba, "lba"), data, fua, metadata, protect)
        return self.transfer("compare", OPC_COMPARE, WRITE_FROM, NVQ_FROM_HOST, lba, data, fua)

    def _check(self, uint8_t opcode, uint64_t lba, uint64_t blocks):
        """The exception of read() and similar calls for blocks that don't exist."""
        self.check_range(lba, blocks, opcode)

    @cython.final
    cdef object transfer(self, str method, uint8_t opcode, uint8_t kind, uint16_t flags, lba, buffer, bint fua):
        cdef uint64_t first = check_u64(lba, "lba")
        cdef Py_buffer probe
        cdef uint64_t nbytes
        cdef Request request = self.make(opcode, first, 1)
        if request is None:
            return self._slow(method, (lba, buffer), {"fua": fua})
        request.hold(buffer, kind == READ_INTO)
        nbytes = request.view.len
        if nbytes == 0 or nbytes & (self.block_size - 1):
            raise ValueError(f"a buffer of {nbytes} bytes is not a positive multiple of the block size of {self.block_size}")
        self.check_range(first, nbytes >> self.block_shift, opcode)
        if nbytes >> self.block_shift > self.max_blocks:
            return self._split(method, lba, buffer, fua)
        request.sqe.cdw12 = <uint32_t>((nbytes >> self.block_shift) - 1)
        if fua:
            request.sqe.cdw12 |= 1u << 30
        request.nbytes = nbytes
        request.kind = kind
        request.flags = flags
        request.state = NEW
        return request

    def flush(self):
        """Commits writes that were acknowledged before this call to non-volatile media (Base
        2.0, 7.1).
        """
        if self._gone is not None:
            raise self._gone
        cdef Request request = self.make(OPC_FLUSH, 0, 1)
        if request is None:
            return self._slow("flush", (), {})
        request.nbytes = 0
        request.state = NEW
        return request


cdef extern from "Python.h":
    void PyErr_Clear() noexcept
    uint64_t c_as_u64 "PyLong_AsUnsignedLongLong"(PyObject *value) noexcept    # -1 with an exception, or 2**64 - 1


cdef inline uint64_t check_u64(value, str name) except? 0xffffffffffffffff:
    cdef uint64_t number
    if PyLong_CheckExact(value):
        number = c_as_u64(<PyObject *>value)
        if number != 0xffffffffffffffff:
            return number
        PyErr_Clear()
    return u64_of_object(value, name)


cdef uint64_t u64_of_object(value, str name) except? 0xffffffffffffffff:
    try:
        return value if PyLong_CheckExact(value) else PyNumber_Index(value)     # which takes NumPy's integers, and no floats
    except OverflowError:
        raise ValueError(f"{name} is {value}, must be 0 to 2**64-1") from None
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}, must be an integer") from None


def _import_loop_lookup():
    global get_running_loop
    from asyncio import _get_running_loop
    get_running_loop = _get_running_loop


_import_loop_lookup()
