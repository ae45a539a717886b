/* Opcodes and fields of the commands that sources send (NVM Command Set 1.0, figure 11). */
#ifndef NVME_ASYNC_HOTPATH_NVM_COMMANDS_H
#define NVME_ASYNC_HOTPATH_NVM_COMMANDS_H

#include <stdint.h>
#include <string.h>

enum nvm_opcode {
    OPC_FLUSH = 0x00,
    OPC_WRITE = 0x01,
    OPC_READ = 0x02,
    OPC_WRITE_ZEROES = 0x08,
    OPC_DSM = 0x09,
};

#define CDW12_FUA (1u << 30)
#define CDW12_DEAC (1u << 25)
#define DSM_DEALLOCATE (1ull << 34) /* AD, bit 2 of dword 11 */
#define DSM_RANGE 16u

/* The one range of a Dataset Management command (NVM Command Set 1.0, figure 41). */
static inline void nvm_dsm_range(uint8_t *at, uint64_t lba, uint32_t blocks)
{
    memset(at, 0, DSM_RANGE);
    memcpy(at + 4, &blocks, 4);
    memcpy(at + 8, &lba, 8);
}

#endif
