@cython.final
cdef class Histogram:
    cdef histogram h

    def __cinit__(self):
        histogram_clear(&self.h)

    @property
    def count(self):
        return self.h.count

    @property
    def total(self):
        return self.h.sum

    @property
    def min(self):
        return self.h.min if self.h.count else 0

    @property
    def max(self):
        return self.h.max

    @property
    def mean(self):
        return <double>self.h.sum / <double>self.h.count if self.h.count else 0.0

    @property
    def deviation(self):
        return histogram_deviation(&self.h)

    def add(self, uint64_t value, uint64_t times=1):
        histogram_add_many(&self.h, value, times)

    def merge(self, Histogram other not None):
        histogram_merge(&self.h, &other.h)

    def __reduce__(self):
        return Histogram, (), (<char *>&self.h)[:sizeof(self.h)]

    def __setstate__(self, bytes state not None):
        if len(state) != sizeof(self.h):
            raise ValueError(f"a histogram has {sizeof(self.h)} bytes, not {len(state)}")
        memcpy(&self.h, <const char *>state, sizeof(self.h))

    def bins(self):
        cdef unsigned i
        return {histogram_value(i): self.h.bucket[i] for i in range(HISTOGRAM_SIZE) if self.h.bucket[i]}

    def counts(self):
        cdef unsigned i
        return [self.h.bucket[i] for i in range(HISTOGRAM_SIZE)]

    def percentiles(self, wanted):
        cdef unsigned i = 0
        cdef uint64_t seen = self.h.bucket[0]
        cdef double need
        values = []
        if not self.h.count:
            return [0] * len(wanted)
        for share in wanted:
            need = share / 100.0 * <double>self.h.count
            while <double>seen < need and i < HISTOGRAM_SIZE - 1:
                i += 1
                seen += self.h.bucket[i]
            values.append(histogram_value(i))
        return values
