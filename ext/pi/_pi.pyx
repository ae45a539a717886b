"""Protection information: guards, generation, checks. See _pi.pyi for the contract."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from "pi/crc.h" nogil:
    uint16_t c_crc16 "crc16_t10"(uint16_t crc, const void *data, size_t nbytes)
    uint32_t c_crc32 "crc32c"(uint32_t crc, const void *data, size_t nbytes)
    uint64_t c_crc64 "crc64_nvme"(uint64_t crc, const void *data, size_t nbytes)
    bint crc_use_instructions(bint on)

cdef extern from "pi/pi.h" nogil:
    ctypedef unsigned long long pi_space "pi_space"  # actually 128 bits: only the C compiler uses its size
    struct pi_format:
        uint32_t block_size
        uint16_t metadata
        uint8_t pif
        uint8_t sts
        uint8_t type
        bint first
    struct pi_tags:
        uint16_t app
        uint16_t app_mask
        pi_space space
    struct pi_blocks:
        uint8_t *data
        uint8_t *meta
        size_t data_stride
        size_t meta_stride
        size_t n
    struct pi_failure:
        size_t block
        unsigned what
        pi_space found
        pi_space expected
    unsigned pi_nbytes(uint8_t pif)
    unsigned pi_space_bits(uint8_t pif)
    void pi_generate(const pi_format *format, const pi_blocks *blocks, const pi_tags *tags)
    pi_failure pi_check(const pi_format *format, const pi_blocks *blocks, const pi_tags *tags, unsigned checks)


CHECK_REF, CHECK_APP, CHECK_GUARD, CHECK_STORAGE = 1, 2, 4, 8
cdef enum:
    WITHOUT_GIL = 16384  # bytes from which on the interpreter lock is let go


def crc16_t10(const unsigned char[::1] data, uint16_t crc=0):
    cdef size_t n = data.shape[0]
    return c_crc16(crc, &data[0], n) if n else crc


def crc32c(const unsigned char[::1] data, uint32_t crc=0):
    cdef size_t n = data.shape[0]
    return c_crc32(crc, &data[0], n) if n else crc


def crc64_nvme(const unsigned char[::1] data, uint64_t crc=0):
    cdef size_t n = data.shape[0]
    return c_crc64(crc, &data[0], n) if n else crc


def use_instructions(bint on):
    return bool(crc_use_instructions(on))


cdef object number(pi_space value):
    """From the 128 bits that they are."""
    cdef uint64_t low = <uint64_t>value
    cdef uint64_t high = <uint64_t>((value >> 32) >> 32)
    return <object>high << 64 | low


cdef class PiFormat:
    cdef pi_format format
    cdef readonly unsigned pi_bytes, tag_bits
    cdef readonly int guard, type

    def __init__(self, uint32_t block_size, uint16_t metadata, int type, *, int guard=16, int storage_tag_bits=0, bint first=False):
        if guard not in (16, 32, 64):
            raise ValueError(f"guard is {guard}, must be 16, 32 or 64")
        if not 1 <= type <= 3:
            raise ValueError(f"type is {type}, must be 1, 2 or 3")
        self.guard, self.type = guard, type
        self.format.pif = {16: 0, 32: 1, 64: 2}[guard]
        self.pi_bytes = pi_nbytes(self.format.pif)
        self.tag_bits = pi_space_bits(self.format.pif)
        if metadata < self.pi_bytes:
            raise ValueError(f"metadata is {metadata} bytes, protection information with a guard of {guard} bits takes {self.pi_bytes}")
        if not 0 <= storage_tag_bits <= min(self.tag_bits, 64):
            raise ValueError(f"storage_tag_bits is {storage_tag_bits}, must be 0 to {min(self.tag_bits, 64)}")
        if block_size < 512:
            raise ValueError(f"block_size is {block_size}, must be 512 or more")
        self.format.block_size, self.format.metadata = block_size, metadata
        self.format.sts, self.format.type, self.format.first = storage_tag_bits, type, first

    cdef int _tags(self, pi_tags *tags, ref, int app, int app_mask, storage) except -1:
        cdef unsigned bits = self.tag_bits - self.format.sts
        if not 0 <= app <= 0xffff or not 0 <= app_mask <= 0xffff:
            raise ValueError(f"application tag {app:#x}, mask {app_mask:#x}: must have 16 bits")
        if storage < 0 or storage >> self.format.sts:
            raise ValueError(f"storage tag {storage:#x} has more than {self.format.sts} bits")
        if ref < 0 or ref >> bits:
            raise ValueError(f"reference tag {ref:#x} has more than {bits} bits")
        space = storage << bits | ref
        tags.app, tags.app_mask = app, app_mask
        tags.space = <pi_space><uint64_t>(space >> 64)
        tags.space = (tags.space << 32) << 32
        tags.space = tags.space | <pi_space><uint64_t>(space & 0xffffffffffffffff)
        return 0

    cdef size_t _blocks(self, pi_blocks *blocks, const unsigned char[::1] data, const unsigned char[::1] meta) except? 0:
        cdef size_t size = self.format.block_size, extra = self.format.metadata, n
        if meta is None:
            n = data.shape[0] // (size + extra)
            if n == 0 or n * (size + extra) != <size_t>data.shape[0]:
                raise ValueError(f"{data.shape[0]} bytes are not a whole number of blocks of {size} + {extra}")
            blocks.data_stride = blocks.meta_stride = size + extra
            blocks.meta = <uint8_t *>&data[size]
        else:
            n = data.shape[0] // size
            if n == 0 or n * size != <size_t>data.shape[0] or n * extra != <size_t>meta.shape[0]:
                raise ValueError(
                    f"{data.shape[0]} bytes of data and {meta.shape[0]} of metadata are not a whole number of blocks of {size} and {extra}")
            blocks.data_stride, blocks.meta_stride = size, extra
            blocks.meta = <uint8_t *>&meta[0]
        blocks.data = <uint8_t *>&data[0]
        blocks.n = n
        return n

    def generate(self, unsigned char[::1] data, unsigned char[::1] metadata=None, *, ref_tag=0, int app_tag=0, storage_tag=0):
        cdef pi_blocks blocks
        cdef pi_tags tags
        self._blocks(&blocks, data, metadata)
        self._tags(&tags, ref_tag, app_tag, 0xffff, storage_tag)
        if data.shape[0] < WITHOUT_GIL:
            pi_generate(&self.format, &blocks, &tags)
            return
        with nogil:
            pi_generate(&self.format, &blocks, &tags)

    def check(self, const unsigned char[::1] data, const unsigned char[::1] metadata=None, *, ref_tag=0, int app_tag=0, int app_mask=0xffff,
              storage_tag=0, unsigned checks=7):
        cdef pi_blocks blocks
        cdef pi_tags tags
        cdef pi_failure failure
        self._blocks(&blocks, data, metadata)
        self._tags(&tags, ref_tag, app_tag, app_mask, storage_tag)
        if data.shape[0] < WITHOUT_GIL:
            failure = pi_check(&self.format, &blocks, &tags, checks)
        else:
            with nogil:
                failure = pi_check(&self.format, &blocks, &tags, checks)
        if not failure.what:
            return None
        return failure.block, failure.what, number(failure.found), number(failure.expected)


def interleave(const unsigned char[::1] data, const unsigned char[::1] metadata, unsigned char[::1] out, size_t size, size_t extra):
    cdef size_t i, n = out.shape[0] // (size + extra)
    if n * (size + extra) != <size_t>out.shape[0] or n * size != <size_t>data.shape[0] or n * extra != <size_t>metadata.shape[0]:
        raise ValueError("data, metadata and result do not have the same number of blocks")
    with nogil:
        for i in range(n):
            memcpy(&out[i * (size + extra)], &data[i * size], size)
            memcpy(&out[i * (size + extra) + size], &metadata[i * extra], extra)


def separate(const unsigned char[::1] blocks, unsigned char[::1] data, unsigned char[::1] metadata, size_t size, size_t extra):
    cdef size_t i, n = blocks.shape[0] // (size + extra)
    if n * (size + extra) != <size_t>blocks.shape[0] or n * size != <size_t>data.shape[0] or n * extra != <size_t>metadata.shape[0]:
        raise ValueError("data, metadata and blocks do not have the same number of blocks")
    with nogil:
        for i in range(n):
            memcpy(&data[i * size], &blocks[i * (size + extra)], size)
            memcpy(&metadata[i * extra], &blocks[i * (size + extra) + size], extra)
