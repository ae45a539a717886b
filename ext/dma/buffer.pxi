# One allocation of a pool, as a Python buffer.

# no_gc: it refers to its pool, which refers to no Python object except text, so there are no
# cycles.
@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class DmaBuffer:
    """A run of whole pages of a pool, made by Pool.alloc() and Pool.claim()."""

    def __cinit__(self):
        self.is_freed = True        # until a pool fills it in

    def __dealloc__(self):
        # An export holds a reference to this object, so there are none left.
        if self.is_freed:
            return
        with cython.critical_section(self.pool):
            if not self.persistent:
                self._return_pages()
            elif self._pool_is_ours():
                self.pool.space.view[self.page] = POOL_VIEW_NONE        # its slot stays and can be claimed

    cdef bint _pool_is_ours(self) noexcept:
        cdef Pool pool = self.pool
        return pool is not None and pool.base != NULL and not pool.is_detached and pool.generation == forked_generation

    cdef void _return_pages(self) noexcept:
        self.is_freed = True
        self.data = NULL
        if not self._pool_is_ours():
            return
        if self.pool.deferred is not None:
            self.pool.deferred.append(self.page)
        else:
            pool_release(&self.pool.space, self.page)

    cdef int _usable(self) except -1:
        if self.is_freed:
            raise ValueError("operation on a freed DmaBuffer")
        return self.pool._usable()

    def free(self):
        with cython.critical_section(self.pool):
            if self.is_freed:
                return
            self.is_freed = True
            if self.exports == 0:
                self._return_pages()

    @property
    def freed(self):
        return self.is_freed

    @property
    def owner(self):
        cdef bytes owner
        self._usable()
        owner = self.pool.space.slots[self.page].owner
        return owner.decode(errors="replace")

    @property
    def tag(self):
        self._usable()
        return self.pool.space.slots[self.page].tag

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        with cython.critical_section(self.pool):
            self._usable()
            buffer.buf = self.data
            buffer.len = self.nbytes
            buffer.itemsize = 1
            buffer.readonly = 0
            buffer.ndim = 1
            buffer.format = BYTES_FORMAT if flags & PyBUF_FORMAT else NULL
            # One dimension: its extent and its step are the two members that say the same, as
            # PyBuffer_FillInfo() does it.
            buffer.shape = &buffer.len if flags & PyBUF_ND == PyBUF_ND else NULL
            buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
            buffer.suboffsets = NULL
            buffer.internal = NULL
            buffer.obj = self
            self.exports += 1
            self.pool.n_exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        with cython.critical_section(self.pool):
            self.exports -= 1
            self.pool.n_exports -= 1
            if self.is_freed and self.exports == 0:
                self._return_pages()

    # No "data" with the address: NumPy takes the memory through the buffer protocol then, which
    # counts as an export, so that free() can't take it away below an array.
    @property
    def __array_interface__(self):
        self._usable()
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1"}

    def _as_array(self):
        from nvme_async.errors import ConfigurationError
        try:
            from numpy import frombuffer
        except ImportError:
            raise ConfigurationError("DLPack needs NumPy: pip install nvme_async[numpy]") from None
        return frombuffer(self, "u1")

    def __dlpack__(self, **options):
        return self._as_array().__dlpack__(**options)

    def __dlpack_device__(self):
        return (1, 0)       # kDLCPU

    def __len__(self):
        return self.nbytes

    def __getitem__(self, key):
        return memoryview(self)[key]

    def __setitem__(self, key, value):
        memoryview(self)[key] = value

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.free()

    def __repr__(self):
        state = f", freed ({self.exports} exports left)" if self.is_freed else ""
        return f"<DmaBuffer of {self.nbytes} bytes at offset {self.offset:#x}, IOVA {self.iova:#x}{state}>"
