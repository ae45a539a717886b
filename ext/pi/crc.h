/*
 * The three guards of NVMe protection information (NVM Command Set 1.1, 5.3.1): CRC-16 of T10 DIF,
 * CRC-32C (Castagnoli), and the 64-bit CRC of NVMe. Each continues from `crc`, the result of the
 * previous call; the first call is given *_INIT.
 *
 * Carry-less multiplication and the CRC-32C instruction are used where the CPU has them.
 * Thread-safe; no state but constant tables.
 */
#ifndef NVME_ASYNC_PI_CRC_H
#define NVME_ASYNC_PI_CRC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CRC16_T10_INIT 0u
#define CRC32C_INIT 0u
#define CRC64_NVME_INIT 0ull

uint16_t crc16_t10(uint16_t crc, const void *data, size_t nbytes);
uint32_t crc32c(uint32_t crc, const void *data, size_t nbytes);
uint64_t crc64_nvme(uint64_t crc, const void *data, size_t nbytes);

/* Sets whether the CPU's instructions are used; false turns them off, for tests. Returns the former
 * setting. */
bool crc_use_instructions(bool on);

#endif
