/* Tests of the controller core, run one by one by tests/unit/test_emulator_core.py: `program NAME`,
 * or `program --list`. */
#ifndef NVME_ASYNC_EMULATOR_BENCH_CHECK_H
#define NVME_ASYNC_EMULATOR_BENCH_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_host.h"

void check_register(const char *name, void (*run)(void));

#define TEST(name)                                                 \
    static void name(void);                                        \
    __attribute__((constructor)) static void register_##name(void) \
    {                                                              \
        check_register(#name, name);                               \
    }                                                              \
    static void name(void)

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                        \
        }                                                                   \
    } while (0)

#define EQUAL(a, b)                                                                                   \
    do {                                                                                              \
        unsigned long long a_ = (unsigned long long)(a), b_ = (unsigned long long)(b);                \
        if (a_ != b_) {                                                                               \
            fprintf(stderr, "%s:%d: %s is %#llx, %s is %#llx\n", __FILE__, __LINE__, #a, a_, #b, b_); \
            exit(1);                                                                                  \
        }                                                                                             \
    } while (0)

#define SECOND 1000000000ull

/* A controller with a RAM namespace of 16 MiB in blocks of 512, enabled, and one I/O queue pair of
 * 64. */
struct bed {
    struct fake_host host;
    struct fh_queue io;
    uint8_t *data; /* 64 pages of host memory */
};
void bed_open(struct bed *bed);
void bed_open_with(struct bed *bed, const struct emu_config *config);
void bed_close(struct bed *bed);
/* fh_do() on the I/O queue, and on the admin queue. */
uint16_t bed_io(struct bed *bed, struct nvme_sqe sqe);
uint16_t bed_admin(struct bed *bed, struct nvme_sqe sqe, uint32_t *result);
uint16_t bed_write(struct bed *bed, uint64_t lba, uint32_t blocks, uint8_t fill);
/* Reads blocks and says whether all bytes are `fill`. */
bool bed_reads(struct bed *bed, uint64_t lba, uint32_t blocks, uint8_t fill);
/* Get Log Page to bed->data. */
uint16_t bed_log(struct bed *bed, uint8_t lid, uint32_t nbytes, bool retain);
/* Polls n times. */
void bed_turn(struct bed *bed, unsigned n);
uint16_t bed_aer(struct bed *bed);
/* The result of an asynchronous event that has completed, or 0xffffffff. */
uint32_t bed_event(struct bed *bed);

#endif
