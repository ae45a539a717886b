#include "pi/crc.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#else
#define X86 0
#endif

#define POLY16 0x8bb7u                  /* x^16 + …, most significant bit first */
#define POLY32 0x82f63b78u              /* reflected */
#define POLY64 0x9a6c9329ac4bc9b5ull    /* reflected AD93D23594C93659h */

static uint16_t table16[8][256];
static uint32_t table32[8][256];
static uint64_t table64[8][256];
static bool have_clmul, have_crc32, use = true;

/* x^n modulo the polynomial, for folding. */
static uint64_t power16(unsigned n)
{
    uint32_t value = 1;
    while (n--) {
        value <<= 1;
        if (value & 0x10000)
            value ^= 0x10000 | POLY16;
    }
    return value;
}

/* Reflected: bit 63 stands for x^0. */
static uint64_t power64(unsigned n)
{
    uint64_t value = 1ull << 63;
    while (n--)
        value = value >> 1 ^ (value & 1 ? POLY64 : 0);
    return value;
}

static uint64_t fold16[4], fold64[4]; /* by 64 bytes: high and low half; by 16 bytes: the same */

__attribute__((constructor)) static void prepare(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint16_t c16 = (uint16_t)(i << 8);
        uint32_t c32 = i;
        uint64_t c64 = i;
        for (unsigned bit = 0; bit < 8; bit++) {
            c16 = (uint16_t)(c16 << 1 ^ (c16 & 0x8000 ? POLY16 : 0));
            c32 = c32 >> 1 ^ (c32 & 1 ? POLY32 : 0);
            c64 = c64 >> 1 ^ (c64 & 1 ? POLY64 : 0);
        }
        table16[0][i] = c16;
        table32[0][i] = c32;
        table64[0][i] = c64;
    }
    for (unsigned k = 1; k < 8; k++) { /* the same byte, with k zeroes after it */
        for (unsigned i = 0; i < 256; i++) {
            uint16_t c16 = table16[k - 1][i];
            table16[k][i] = (uint16_t)(c16 << 8 ^ table16[0][c16 >> 8]);
            table32[k][i] = table32[k - 1][i] >> 8 ^ table32[0][table32[k - 1][i] & 0xff];
            table64[k][i] = table64[k - 1][i] >> 8 ^ table64[0][table64[k - 1][i] & 0xff];
        }
    }
    fold16[0] = power16(512 + 64);
    fold16[1] = power16(512);
    fold16[2] = power16(128 + 64);
    fold16[3] = power16(128);
    /* A product of reflected halves is one bit short, which an exponent lower by one
     * compensates. */
    fold64[0] = power64(512 + 64 - 1);
    fold64[1] = power64(512 - 1);
    fold64[2] = power64(128 + 64 - 1);
    fold64[3] = power64(128 - 1);
#if X86
    have_clmul = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("ssse3");
    have_crc32 = __builtin_cpu_supports("sse4.2");
#endif
}

bool crc_use_instructions(bool on)
{
    bool was = use;
    use = on;
    return was;
}

static uint16_t plain16(uint16_t crc, const uint8_t *p, size_t n)
{
    for (; n >= 8; n -= 8, p += 8)
        crc = table16[7][p[0] ^ crc >> 8] ^ table16[6][p[1] ^ (crc & 0xff)] ^ table16[5][p[2]] ^ table16[4][p[3]] ^
              table16[3][p[4]] ^ table16[2][p[5]] ^ table16[1][p[6]] ^ table16[0][p[7]];
    while (n--)
        crc = (uint16_t)(crc << 8 ^ table16[0][(crc >> 8 ^ *p++) & 0xff]);
    return crc;
}

/* Both reflected CRCs: eight bytes at a time, then the rest. */
#define PLAIN_REFLECTED(bits)                                                         \
    static uint##bits##_t plain##bits(uint##bits##_t crc, const uint8_t *p, size_t n) \
    {                                                                                 \
        for (; n >= 8; n -= 8, p += 8) {                                              \
            uint64_t word;                                                            \
            memcpy(&word, p, 8);                                                      \
            word ^= crc;                                                              \
            crc = 0;                                                                  \
            for (unsigned i = 0; i < 8; i++)                                          \
                crc ^= table##bits[7 - i][word >> 8 * i & 0xff];                      \
        }                                                                             \
        while (n--)                                                                   \
            crc = crc >> 8 ^ table##bits[0][(crc ^ *p++) & 0xff];                     \
        return crc;                                                                   \
    }
PLAIN_REFLECTED(32)
PLAIN_REFLECTED(64)

#if X86
#define CLMUL __attribute__((target("pclmul,ssse3")))

CLMUL static __m128i fold(__m128i state, __m128i by, __m128i next)
{
    /* The first half of a block is the low one for a reflected CRC and, with bytes swapped, the
     * high one for the other; `by` has its factors accordingly. */
    return _mm_xor_si128(next,
                         _mm_xor_si128(_mm_clmulepi64_si128(state, by, 0x00), _mm_clmulepi64_si128(state, by, 0x11)));
}

CLMUL static inline __m128i load_swapped(const uint8_t *p)
{
    const __m128i swap = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p), swap);
}

/* n is 64 or more. */
CLMUL static uint16_t clmul16(uint16_t crc, const uint8_t *p, size_t n)
{
    const __m128i by4 = _mm_set_epi64x((long long)fold16[0], (long long)fold16[1]);
    const __m128i by1 = _mm_set_epi64x((long long)fold16[2], (long long)fold16[3]);
    __m128i a = load_swapped(p), b = load_swapped(p + 16), c = load_swapped(p + 32), d = load_swapped(p + 48);
    a = _mm_xor_si128(a, _mm_set_epi64x((long long)((uint64_t)crc << 48), 0));
    for (p += 64, n -= 64; n >= 64; p += 64, n -= 64) {
        a = fold(a, by4, load_swapped(p));
        b = fold(b, by4, load_swapped(p + 16));
        c = fold(c, by4, load_swapped(p + 32));
        d = fold(d, by4, load_swapped(p + 48));
    }
    a = fold(fold(fold(a, by1, b), by1, c), by1, d);
    for (; n >= 16; p += 16, n -= 16)
        a = fold(a, by1, load_swapped(p));
    uint8_t rest[16];
    const __m128i swap = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm_storeu_si128((__m128i *)rest, _mm_shuffle_epi8(a, swap));
    return plain16(plain16(0, rest, 16), p, n);
}

CLMUL static uint64_t clmul64(uint64_t crc, const uint8_t *p, size_t n)
{
    const __m128i by4 = _mm_set_epi64x((long long)fold64[1], (long long)fold64[0]);
    const __m128i by1 = _mm_set_epi64x((long long)fold64[3], (long long)fold64[2]);
    const __m128i *at = (const __m128i *)p;
    __m128i a = _mm_loadu_si128(at), b = _mm_loadu_si128(at + 1), c = _mm_loadu_si128(at + 2),
            d = _mm_loadu_si128(at + 3);
    a = _mm_xor_si128(a, _mm_set_epi64x(0, (long long)crc));
    for (at += 4, n -= 64; n >= 64; at += 4, n -= 64) {
        a = fold(a, by4, _mm_loadu_si128(at));
        b = fold(b, by4, _mm_loadu_si128(at + 1));
        c = fold(c, by4, _mm_loadu_si128(at + 2));
        d = fold(d, by4, _mm_loadu_si128(at + 3));
    }
    a = fold(fold(fold(a, by1, b), by1, c), by1, d);
    for (; n >= 16; at++, n -= 16)
        a = fold(a, by1, _mm_loadu_si128(at));
    uint8_t rest[16];
    _mm_storeu_si128((__m128i *)rest, a);
    return plain64(plain64(0, rest, 16), (const uint8_t *)at, n);
}

__attribute__((target("sse4.2"))) static uint32_t instruction32(uint32_t crc, const uint8_t *p, size_t n)
{
    uint64_t value = crc;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        value = _mm_crc32_u64(value, word);
    }
    return plain32((uint32_t)value, p, n);
}
#endif

uint16_t crc16_t10(uint16_t crc, const void *data, size_t nbytes)
{
#if X86
    if (have_clmul && use && nbytes >= 64)
        return clmul16(crc, data, nbytes);
#endif
    return plain16(crc, data, nbytes);
}

uint32_t crc32c(uint32_t crc, const void *data, size_t nbytes)
{
#if X86
    if (have_crc32 && use)
        return ~instruction32(~crc, data, nbytes);
#endif
    return ~plain32(~crc, data, nbytes);
}

uint64_t crc64_nvme(uint64_t crc, const void *data, size_t nbytes)
{
#if X86
    if (have_clmul && use && nbytes >= 64)
        return ~clmul64(~crc, data, nbytes);
#endif
    return ~plain64(~crc, data, nbytes);
}
