# Data in several places, as the runs of bytes that follow one another.

DEF MAX_RUNS = 1 << 20
DEF MAX_DIMENSIONS = 64


cdef class Scatter:
    """The bytes of several buffers in order, each in C order of its items, whatever their strides:
    NumPy views need not be contiguous. Holds the buffers.

    Of one thread at a time. ValueError for a buffer that is read-only although data are to be
    written to it, and for more than 1,048,576 runs. The runs' device addresses are those of the
    last locate().
    """

    def __cinit__(self, buffers=(), bint writable=False):
        cdef Py_ssize_t i
        buffers = list(buffers)
        self.views = <Py_buffer *>calloc(max(1, len(buffers)), sizeof(Py_buffer))
        if self.views == NULL:
            raise MemoryError()
        for i in range(len(buffers)):
            export_strided(buffers[i], &self.views[i], writable)
            self.n_views += 1
            self.add_view(&self.views[i])

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_views):
            PyBuffer_Release(&self.views[i])
        free(self.views)
        free(self.runs)

    cdef int add_run(self, char *data, size_t nbytes) except -1:
        cdef Run *grown
        cdef Run *last = &self.runs[self.n_runs - 1] if self.n_runs else NULL
        if not nbytes:
            return 0
        self.nbytes += nbytes
        if last != NULL and last.data + last.nbytes == data and last.nbytes + nbytes <= 0xffffffff:
            last.nbytes += nbytes
            return 0
        if self.n_runs == self.capacity:
            if self.n_runs == MAX_RUNS:
                raise ValueError(f"the buffers are scattered over more than {MAX_RUNS} places")
            self.capacity = max(16, 2 * self.capacity)
            grown = <Run *>realloc(self.runs, self.capacity * sizeof(Run))
            if grown == NULL:
                raise MemoryError()
            self.runs = grown
        if nbytes > 0xffffffff:          # what the length of a descriptor holds
            raise ValueError(f"a buffer of {nbytes} bytes is over the limit of 4 GiB for scattered data")
        self.runs[self.n_runs] = Run(data, 0, nbytes)
        self.n_runs += 1
        return 0

    cdef int add_view(self, Py_buffer *view) except -1:
        """Its runs: the last dimensions whose items follow one another are one; the others are
        counted through, the last of them fastest.
        """
        cdef Py_ssize_t index[MAX_DIMENSIONS]
        cdef int outer = view.ndim
        cdef int at
        cdef Py_ssize_t nbytes = view.itemsize
        cdef char *data = <char *>view.buf
        if view.len == 0:
            return 0
        if view.ndim > MAX_DIMENSIONS:
            raise ValueError(f"a buffer of {view.ndim} dimensions: at most {MAX_DIMENSIONS} are supported")
        if view.ndim == 0 or view.strides == NULL:
            return self.add_run(data, view.len)
        while outer and (view.shape[outer - 1] == 1 or view.strides[outer - 1] == nbytes):
            outer -= 1
            nbytes *= view.shape[outer]
        memset(index, 0, sizeof(index))
        while True:
            self.add_run(data, nbytes)
            at = outer - 1
            while at >= 0:
                index[at] += 1
                data += view.strides[at]
                if index[at] < view.shape[at]:
                    break
                data -= view.strides[at] * view.shape[at]
                index[at] = 0
                at -= 1
            if at < 0:
                return 0

    cdef bint locate(self, AddressMap addresses, unsigned mask) except -1:
        """Sets the device addresses of the runs. False: the device doesn't reach all of them, or
        an address or length has one of these bits.
        """
        cdef size_t i
        cdef Mapping *mapping = NULL
        cdef Run *run
        cdef bint found = True
        ft_acquire(&addresses.lock)
        for i in range(self.n_runs):
            run = &self.runs[i]
            if mapping == NULL or not (mapping.begin <= <uintptr_t>run.data and <uintptr_t>run.data + run.nbytes <= mapping.end):
                mapping = find_mapping(addresses, run.data, run.nbytes)
            if mapping == NULL or (<uintptr_t>run.data | run.nbytes) & mask:
                found = False
                break
            run.iova = mapping.iova + (<uintptr_t>run.data - mapping.begin)
        ft_release(&addresses.lock)
        return found

    cdef bint touches(self, uint64_t iova, uint64_t nbytes) noexcept:
        """Is any of it within [iova, iova + nbytes)?"""
        cdef size_t i
        for i in range(self.n_runs):
            if self.runs[i].iova < iova + nbytes and iova < self.runs[i].iova + self.runs[i].nbytes:
                return True
        return self.metadata is not None and self.metadata.touches(iova, nbytes)

    cdef size_t n_entries(self) noexcept:
        cdef size_t n = 0 if self.n_runs == 1 else self.n_runs
        if self.metadata is not None:
            n += 1 if self.metadata.n_runs == 1 else 1 + self.metadata.n_runs
        return n

    @property
    def entries(self):
        """Descriptors in the list area of a command with this data and metadata."""
        return self.n_entries()

    def part(self, size_t begin, size_t nbytes):
        """A Scatter of `nbytes` bytes from byte `begin` on."""
        cdef Scatter part = Scatter.__new__(Scatter)
        cdef size_t i = 0, taken
        part.parent = self
        if begin > self.nbytes or nbytes > self.nbytes - begin:
            raise ValueError(f"{nbytes} bytes from byte {begin} of {self.nbytes}")
        while nbytes:
            if begin >= self.runs[i].nbytes:
                begin -= self.runs[i].nbytes
                i += 1
                continue
            taken = min(nbytes, self.runs[i].nbytes - begin)
            part.add_run(self.runs[i].data + begin, taken)
            nbytes -= taken
            begin += taken
        return part

    def reachable(self, AddressMap addresses, unsigned mask=0):
        """Whether the device reaches all of it, and no address or length has a bit of `mask`."""
        return self.locate(addresses, mask)

    def split(self, size_t unit, size_t max_nbytes, size_t max_runs):
        """[Scatter, …]: its parts in order, each a multiple of `unit` bytes, of at most max_nbytes
        and max_runs. None: there are more than max_runs within one unit, or a rest.
        """
        cdef Scatter part = None
        cdef size_t i = 0, at = 0, done = 0, taken
        cdef size_t units = 0
        if self.nbytes % unit:
            return None
        parts = []
        while done < self.nbytes:
            # The next unit's runs, found twice: to count them, and to add them.
            if part is not None and part.nbytes + unit <= max_nbytes and part.n_runs + self.runs_of(i, at, unit) <= max_runs:
                pass
            elif self.runs_of(i, at, unit) > max_runs or unit > max_nbytes:
                return None
            else:
                part = Scatter.__new__(Scatter)
                part.parent = self
                parts.append(part)
            units = unit
            while units:
                taken = min(units, self.runs[i].nbytes - at)
                part.add_run(self.runs[i].data + at, taken)
                units -= taken
                at += taken
                if at == self.runs[i].nbytes:
                    i += 1
                    at = 0
            done += unit
        return parts

    cdef size_t runs_of(self, size_t i, size_t at, size_t nbytes) noexcept:
        """The number of runs that `nbytes` from byte `at` of run i touch."""
        cdef size_t n = 0, taken
        while nbytes:
            taken = min(nbytes, self.runs[i].nbytes - at)
            nbytes -= taken
            n += 1
            i += 1
            at = 0
        return n

    def gather(self):
        """A bytearray with all of it."""
        result = bytearray(self.nbytes)
        cdef char *to = PyByteArray_AS_STRING(result)
        cdef size_t i
        for i in range(self.n_runs):
            memcpy(to, self.runs[i].data, self.runs[i].nbytes)
            to += self.runs[i].nbytes
        return result

    def fill(self, const uint8_t[::1] data):
        """Copies `data` to it, which has as many bytes."""
        cdef size_t i
        cdef size_t at = 0
        if <size_t>data.shape[0] != self.nbytes:
            raise ValueError(f"{data.shape[0]} bytes for buffers of {self.nbytes}")
        for i in range(self.n_runs):
            memcpy(self.runs[i].data, &data[at], self.runs[i].nbytes)
            at += self.runs[i].nbytes

    def __len__(self):
        return self.n_runs


cdef int export_strided(buffer, Py_buffer *view, bint writable) except -1:
    try:
        PyObject_GetBuffer(buffer, view, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
        return 0
    except (BufferError, ValueError):
        if writable and memoryview(buffer).readonly:
            raise ValueError(f"the {type(buffer).__name__} is read-only, and data were to be read into it") from None
        raise
