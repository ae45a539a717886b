/*
 * Checksums that no standard module has: CRC-32C (Castagnoli; SSE4.2's instruction when there is
 * one) and XXH64; and the pseudo-random contents which they protect.
 */
#ifndef NVME_ASYNC_BENCH_CHECKSUM_H
#define NVME_ASYNC_BENCH_CHECKSUM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t load64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
static inline uint32_t load32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static uint32_t crc32c_table[8][256];

static void crc32c_fill_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;

        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0);
        crc32c_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int n = 1; n < 8; n++)
            crc32c_table[n][i] = (crc32c_table[n - 1][i] >> 8) ^ crc32c_table[0][crc32c_table[n - 1][i] & 0xFF];
}

/* Eight bytes at a time through eight tables. Little-endian hosts only, like the rest of ext/. */
static uint32_t crc32c_software(uint32_t crc, const unsigned char *p, size_t n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, crc32c_fill_table);
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word = load64(p) ^ crc;

        crc = crc32c_table[7][word & 0xFF] ^ crc32c_table[6][word >> 8 & 0xFF] ^ crc32c_table[5][word >> 16 & 0xFF] ^
              crc32c_table[4][word >> 24 & 0xFF] ^ crc32c_table[3][word >> 32 & 0xFF] ^
              crc32c_table[2][word >> 40 & 0xFF] ^ crc32c_table[1][word >> 48 & 0xFF] ^ crc32c_table[0][word >> 56];
    }
    while (n--)
        crc = crc32c_table[0][(crc ^ *p++) & 0xFF] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_hardware(uint32_t crc, const unsigned char *p, size_t n)
{
    uint64_t wide = crc;

    for (; n >= 8; p += 8, n -= 8)
        wide = __builtin_ia32_crc32di(wide, load64(p));
    crc = (uint32_t)wide;
    while (n--)
        crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}

static inline bool crc32c_has_hardware(void)
{
    return __builtin_cpu_supports("sse4.2");
}
#else
static uint32_t crc32c_hardware(uint32_t crc, const unsigned char *p, size_t n)
{
    return crc32c_software(crc, p, n);
}
static inline bool crc32c_has_hardware(void)
{
    return false;
}
#endif

/* `crc` continues an earlier one; 0 starts. RFC 3720, B.4 has the test values. */
static inline uint32_t crc32c(uint32_t crc, const unsigned char *p, size_t n, bool software)
{
    return ~(crc32c_has_hardware() && !software ? crc32c_hardware(~crc, p, n) : crc32c_software(~crc, p, n));
}

#define XXH_P1 0x9E3779B185EBCA87u
#define XXH_P2 0xC2B2AE3D27D4EB4Fu
#define XXH_P3 0x165667B19E3779F9u
#define XXH_P4 0x85EBCA77C2B2AE63u
#define XXH_P5 0x27D4EB2F165667C5u

static inline uint64_t rotate64(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}
static inline uint64_t xxh64_round(uint64_t lane, uint64_t input)
{
    return rotate64(lane + input * XXH_P2, 31) * XXH_P1;
}

/* XXH64 as its public specification has it (github.com/Cyan4973/xxHash, doc/xxhash_spec.md). */
static uint64_t xxh64(uint64_t seed, const unsigned char *p, size_t n)
{
    uint64_t lane[4] = {seed + XXH_P1 + XXH_P2, seed + XXH_P2, seed, seed - XXH_P1};
    uint64_t hash = seed + XXH_P5;
    size_t left = n;

    if (n >= 32) {
        for (; left >= 32; p += 32, left -= 32)
            for (int i = 0; i < 4; i++)
                lane[i] = xxh64_round(lane[i], load64(p + 8 * i));
        hash = rotate64(lane[0], 1) + rotate64(lane[1], 7) + rotate64(lane[2], 12) + rotate64(lane[3], 18);
        for (int i = 0; i < 4; i++)
            hash = (hash ^ xxh64_round(0, lane[i])) * XXH_P1 + XXH_P4;
    }
    hash += n;
    for (; left >= 8; p += 8, left -= 8)
        hash = rotate64(hash ^ xxh64_round(0, load64(p)), 27) * XXH_P1 + XXH_P4;
    for (; left >= 4; p += 4, left -= 4)
        hash = rotate64(hash ^ (load32(p) * XXH_P1), 23) * XXH_P2 + XXH_P3;
    for (; left; p++, left--)
        hash = rotate64(hash ^ (*p * XXH_P5), 11) * XXH_P1;
    hash = (hash ^ hash >> 33) * XXH_P2;
    hash = (hash ^ hash >> 29) * XXH_P3;
    return hash ^ hash >> 32;
}

/* One byte at a time through a table of 256 entries of the width that the CRC has. */
static uint64_t crc64_table[256];
static unsigned char crc7_table[256];

static void crc_fill_tables(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t wide = i;
        unsigned char narrow = (unsigned char)i;

        for (int bit = 0; bit < 8; bit++) {
            wide = (wide >> 1) ^ (wide & 1 ? 0xC96C5795D7870F42u : 0);
            narrow = (unsigned char)((narrow << 1) ^ (narrow & 0x80 ? 0x12 : 0));
        }
        crc64_table[i] = wide;
        crc7_table[i] = narrow;
    }
}

static void crc_need_tables(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, crc_fill_tables);
}

/* CRC-64/XZ: ECMA-182's polynomial, reflected. */
static uint64_t crc64(const unsigned char *p, size_t n)
{
    uint64_t crc = UINT64_MAX;

    crc_need_tables();
    while (n--)
        crc = crc64_table[(crc ^ *p++) & 0xFF] ^ (crc >> 8);
    return ~crc;
}

/* CRC-7/MMC: x^7 + x^3 + 1; kept in the upper seven bits while it is computed. */
static unsigned char crc7(const unsigned char *p, size_t n)
{
    unsigned char crc = 0;

    crc_need_tables();
    while (n--)
        crc = crc7_table[crc ^ *p++];
    return crc >> 1;
}

/* Pseudo-random bytes that anybody can produce again from the key: xorshift, eight bytes a step. */
static void fill_random(unsigned char *p, size_t n, uint64_t key)
{
    uint64_t x = (key ^ XXH_P3) * XXH_P1;

    x = (x ^ x >> 32) | 1;
    for (; n;) {
        size_t chunk = n < 8 ? n : 8;

        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(p, &x, chunk);
        p += chunk;
        n -= chunk;
    }
}

#endif
