/*
 * CRC32C (Castagnoli polynomial 1EDC6F41h, reflected), the digest of NVMe/TCP (TCP Transport 1.0,
 * 3.3.1.1), as a running value:
 *
 *   digest = ~crc32c(crc32c(CRC32C_INIT, a, na), b, nb)
 *
 * It uses the processor's instruction if there is one (SSE 4.2, ARMv8 CRC), with three streams at
 * once for long data, because the instruction takes three cycles and one can start in each.
 * Otherwise it uses tables, eight bytes at a time.
 *
 * One source file of each extension defines CRC32C_IMPLEMENTATION before it includes this.
 */
#ifndef NVME_ASYNC_COMMON_CRC32C_H
#define NVME_ASYNC_COMMON_CRC32C_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

#define CRC32C_INIT 0xffffffffu
#define CRC32C_POLYNOMIAL 0x82f63b78u /* reflected */
#define CRC32C_LONG 2048u             /* bytes of each of the three streams */
#define CRC32C_SHORT 256u

struct crc32c_tables {
    uint32_t byte[8][256];
    /* The running value after so many zero bytes, by its four bytes. */
    uint32_t skip_long[4][256], skip_short[4][256];
    bool hardware;
};

extern struct crc32c_tables crc32c_tables;
/* Once, before the first digest. From any thread. */
void crc32c_init(void);

static inline uint32_t crc32c_software(uint32_t crc, const uint8_t *p, size_t n)
{
    const uint32_t (*t)[256] = (const uint32_t (*)[256])crc32c_tables.byte;
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t low, high;
        memcpy(&low, p, 4);
        memcpy(&high, p + 4, 4);
        low ^= crc;
        crc = t[7][low & 255] ^ t[6][low >> 8 & 255] ^ t[5][low >> 16 & 255] ^ t[4][low >> 24] ^ t[3][high & 255] ^
              t[2][high >> 8 & 255] ^ t[1][high >> 16 & 255] ^ t[0][high >> 24];
    }
    while (n--)
        crc = t[0][(crc ^ *p++) & 255] ^ crc >> 8;
    return crc;
}

#ifdef CRC32C_IMPLEMENTATION
struct crc32c_tables crc32c_tables;

static void crc32c_make_skip(uint32_t table[4][256], size_t nbytes)
{
    static const uint8_t zeroes[CRC32C_SHORT];
    uint32_t bit[32];
    for (unsigned i = 0; i < 32; i++) {
        bit[i] = 1u << i;
        for (size_t done = 0; done < nbytes; done += sizeof(zeroes))
            bit[i] = crc32c_software(bit[i], zeroes, sizeof(zeroes));
    }
    for (unsigned k = 0; k < 4; k++)
        for (unsigned value = 0; value < 256; value++) {
            uint32_t sum = 0; /* the update with zeroes is linear */
            for (unsigned i = 0; i < 8; i++)
                if (value >> i & 1)
                    sum ^= bit[8 * k + i];
            table[k][value] = sum;
        }
}

static void crc32c_prepare(void)
{
    struct crc32c_tables *t = &crc32c_tables;
    for (unsigned i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (unsigned k = 0; k < 8; k++)
            crc = crc & 1 ? crc >> 1 ^ CRC32C_POLYNOMIAL : crc >> 1;
        t->byte[0][i] = crc;
    }
    for (unsigned i = 0; i < 256; i++)
        for (unsigned k = 1; k < 8; k++)
            t->byte[k][i] = t->byte[0][t->byte[k - 1][i] & 255] ^ t->byte[k - 1][i] >> 8;
    crc32c_make_skip(t->skip_long, CRC32C_LONG);
    crc32c_make_skip(t->skip_short, CRC32C_SHORT);
#if defined(__x86_64__)
    __builtin_cpu_init();
    t->hardware = __builtin_cpu_supports("sse4.2");
#elif defined(__aarch64__)
    t->hardware = getauxval(AT_HWCAP) & HWCAP_CRC32;
#endif
}

void crc32c_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, crc32c_prepare);
}
#endif

static inline uint32_t crc32c_skip(const uint32_t table[4][256], uint32_t crc)
{
    return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24];
}

#if defined(__x86_64__) || defined(__aarch64__)
#if defined(__x86_64__)
#define CRC32C_TARGET __attribute__((target("sse4.2")))
#define CRC32C_8(crc, value) __builtin_ia32_crc32di(crc, value)
#define CRC32C_1(crc, value) __builtin_ia32_crc32qi(crc, value)
#else
#define CRC32C_TARGET __attribute__((target("+crc")))
#define CRC32C_8(crc, value) __builtin_aarch64_crc32cx((uint32_t)(crc), value)
#define CRC32C_1(crc, value) __builtin_aarch64_crc32cb(crc, value)
#endif

CRC32C_TARGET static inline uint32_t crc32c_three(uint32_t crc, const uint8_t *p, size_t stream,
                                                  const uint32_t skip[4][256])
{
    uint64_t a = crc, b = 0, c = 0, va, vb, vc;
    for (size_t i = 0; i < stream; i += 8) {
        memcpy(&va, p + i, 8);
        memcpy(&vb, p + stream + i, 8);
        memcpy(&vc, p + 2 * stream + i, 8);
        a = CRC32C_8(a, va);
        b = CRC32C_8(b, vb);
        c = CRC32C_8(c, vc);
    }
    return crc32c_skip(skip, crc32c_skip(skip, (uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
}

CRC32C_TARGET static inline uint32_t crc32c_hardware(uint32_t crc, const uint8_t *p, size_t n)
{
    uint64_t value;
    for (; n >= 3 * CRC32C_LONG; n -= 3 * CRC32C_LONG, p += 3 * CRC32C_LONG)
        crc = crc32c_three(crc, p, CRC32C_LONG, crc32c_tables.skip_long);
    for (; n >= 3 * CRC32C_SHORT; n -= 3 * CRC32C_SHORT, p += 3 * CRC32C_SHORT)
        crc = crc32c_three(crc, p, CRC32C_SHORT, crc32c_tables.skip_short);
    uint64_t wide = crc;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&value, p, 8);
        wide = CRC32C_8(wide, value);
    }
    crc = (uint32_t)wide;
    while (n--)
        crc = CRC32C_1(crc, *p++);
    return crc;
}
#endif

static inline uint32_t crc32c(uint32_t crc, const void *data, size_t n)
{
#if defined(__x86_64__) || defined(__aarch64__)
    if (crc32c_tables.hardware)
        return crc32c_hardware(crc, data, n);
#endif
    return crc32c_software(crc, data, n);
}

#endif
