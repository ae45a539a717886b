/* Translation of NVMe commands to system calls, and of the kernel's errors to NVMe status. */
#define _GNU_SOURCE
#include "kernel_link.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define CHUNK (1u << 20)
#define PRACT (1u << 29) /* the controller inserts and strips the metadata of a block, so that its length is another */

uint16_t kl_status_of(int error, bool write)
{
    switch (error) {
    case ENOSPC:
    case EDQUOT:
        return KL_CAPACITY_EXCEEDED | KL_DO_NOT_RETRY;
    case EFBIG:
        return KL_LBA_OUT_OF_RANGE | KL_DO_NOT_RETRY;
    case EROFS:
    case EBADF:
    case EPERM:
    case ETXTBSY:
        return KL_WRITE_PROTECTED | KL_DO_NOT_RETRY;
    case EACCES:
        return KL_OPERATION_DENIED | KL_DO_NOT_RETRY;
    case EOPNOTSUPP:
    case ENOTTY:
    case ENOSYS:
        return KL_INVALID_OPCODE | KL_DO_NOT_RETRY;
    case EINVAL:
        return KL_INVALID_FIELD | KL_DO_NOT_RETRY;
    case EFAULT:
        return KL_DATA_TRANSFER_ERROR | KL_DO_NOT_RETRY;
    case ECANCELED:
        return KL_ABORTED;
    case EILSEQ: /* BLK_STS_PROTECTION */
        return KL_GUARD_ERROR;
    case EBADE: /* BLK_STS_RESV_CONFLICT */
        return KL_RESERVATION_CONFLICT;
    case EIO:
    case ENODATA: /* BLK_STS_MEDIUM */
        return write ? KL_WRITE_FAULT : KL_READ_ERROR;
    default:
        return KL_INTERNAL_ERROR;
    }
}

bool kl_changes_data(uint8_t opcode)
{
    switch (opcode) {
    case OP_FLUSH:
    case OP_READ:
    case OP_COMPARE:
    case OP_VERIFY:
    case 0x0e: /* Reservation Report */
    case 0x12: /* I/O Management Receive */
    case 0x7a: /* Zone Management Receive */
        return false;
    default:
        return true;
    }
}

static uint32_t blocks_of(const struct nvq_sqe *sqe)
{
    return (sqe->cdw12 & 0xffff) + 1;
}

static uint64_t lba_of(const struct nvq_sqe *sqe)
{
    return (uint64_t)sqe->cdw11 << 32 | sqe->cdw10;
}

uint16_t kl_check(const struct kl_target *target, const struct nvq_sqe *sqe, uint32_t nbytes)
{
    const bool moves = sqe->opcode == OP_READ || sqe->opcode == OP_WRITE || sqe->opcode == OP_COMPARE;
    const bool by_blocks = moves || sqe->opcode == OP_ZONE_APPEND;
    if (!target->writable && kl_changes_data(sqe->opcode))
        return KL_WRITE_PROTECTED | KL_DO_NOT_RETRY;
    /* Linux's NVMe driver does not check this: with another length it would access memory beyond
     * the command's buffer. */
    if (by_blocks && nbytes != (uint64_t)blocks_of(sqe) * target->block_bytes && !(sqe->cdw12 & PRACT))
        return KL_LENGTH_INVALID | KL_DO_NOT_RETRY;
    if (target->kind == KL_PASSTHROUGH)
        return 0; /* the controller itself checks the rest */
    if (moves || sqe->opcode == OP_WRITE_ZEROES || sqe->opcode == OP_VERIFY) {
        const uint64_t lba = lba_of(sqe), blocks = blocks_of(sqe);
        if (lba > target->blocks || blocks > target->blocks - lba)
            return KL_LBA_OUT_OF_RANGE | KL_DO_NOT_RETRY;
    }
    return 0;
}

/* -- executing one command
 * --------------------------------------------------------------------- */

static int failure(struct kl_job *job, int error, bool write)
{
    job->status = kl_status_of(error, write);
    job->dw0 = KL_ERRNO | (uint32_t)error;
    return -1;
}

/* All of it, or -1 with the job's status. */
static int transfer(struct kl_job *job, uint8_t *data, uint64_t nbytes, uint64_t at, bool write)
{
    const int flags = write && job->sqe.cdw12 >> 30 & 1 ? RWF_DSYNC : 0;
    uint64_t moved = 0;
    while (moved < nbytes) {
        struct iovec part = {.iov_base = data + moved, .iov_len = nbytes - moved};
        const off_t offset = (off_t)(at + moved);
        const ssize_t n =
            write ? pwritev2(job->target.fd, &part, 1, offset, flags) : preadv2(job->target.fd, &part, 1, offset, 0);
        if (n > 0) {
            moved += (uint64_t)n;
            continue;
        }
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        /* The file ends here: it is shorter than it was. Direct I/O returns EINVAL beyond an end
         * within a block. */
        if (n == 0 || (errno == EINVAL && moved)) {
            job->status = (write ? KL_CAPACITY_EXCEEDED : KL_LBA_OUT_OF_RANGE) | KL_DO_NOT_RETRY;
            return -1;
        }
        return failure(job, errno, write);
    }
    return 0;
}

static void compare(struct kl_job *job, bool verify)
{
    const uint64_t nbytes = (uint64_t)blocks_of(&job->sqe) << job->target.block_shift;
    const uint64_t at = lba_of(&job->sqe) << job->target.block_shift;
    const uint64_t chunk = nbytes < CHUNK ? nbytes : CHUNK;
    uint8_t *memory = aligned_alloc(4096, (chunk + 4095) & ~4095ull);
    if (!memory) {
        failure(job, ENOMEM, false);
        return;
    }
    for (uint64_t done = 0; done < nbytes && !job->status; done += chunk) {
        const uint64_t part = nbytes - done < chunk ? nbytes - done : chunk;
        if (transfer(job, memory, part, at + done, false))
            break;
        if (!verify && memcmp(memory, job->data + done, part) != 0)
            job->status = KL_COMPARE_FAILURE | KL_DO_NOT_RETRY;
    }
    free(memory);
}

static void write_zeroes(struct kl_job *job)
{
    const uint64_t at = lba_of(&job->sqe) << job->target.block_shift;
    const uint64_t nbytes = (uint64_t)blocks_of(&job->sqe) << job->target.block_shift;
    const int fd = job->target.fd;
    const bool deallocate = job->sqe.cdw12 >> 25 & 1;
    const int modes[2] = {
        (deallocate ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE,
        (deallocate ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE) | FALLOC_FL_KEEP_SIZE,
    };
    for (int i = 0; i < 2; i++) {
        if (fallocate(fd, modes[i], (off_t)at, (off_t)nbytes) == 0)
            return;
        if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS) {
            failure(job, errno, true);
            return;
        }
    }
    const uint64_t chunk = nbytes < CHUNK ? nbytes : CHUNK;
    uint8_t *zeroes = aligned_alloc(4096, (chunk + 4095) & ~4095ull);
    if (!zeroes) {
        failure(job, ENOMEM, true);
        return;
    }
    memset(zeroes, 0, chunk);
    for (uint64_t done = 0;
         done < nbytes && !transfer(job, zeroes, nbytes - done < chunk ? nbytes - done : chunk, at + done, true);)
        done += chunk;
    free(zeroes);
}

/* Deallocate is a hint (NVM Command Set 1.0, 3.2.3): where it is not supported, nothing happens. */
static void deallocate(struct kl_job *job)
{
    struct range {
        uint32_t attributes, blocks;
        uint64_t lba;
    } range;
    const uint32_t n = (job->sqe.cdw10 & 0xff) + 1;
    if (n * sizeof(range) > job->nbytes || !(job->sqe.cdw11 & 4)) {
        job->status = job->sqe.cdw11 & 4 ? KL_LENGTH_INVALID : 0;
        return;
    }
    for (int check = 1; check >= 0; check--) {
        for (uint32_t i = 0; i < n; i++) {
            memcpy(&range, job->data + i * sizeof(range), sizeof(range));
            if (range.lba > job->target.blocks || range.blocks > job->target.blocks - range.lba) {
                job->status = KL_LBA_OUT_OF_RANGE | KL_DO_NOT_RETRY;
                return;
            }
            if (check || !range.blocks)
                continue;
            uint64_t where[2] = {range.lba << job->target.block_shift,
                                 (uint64_t)range.blocks << job->target.block_shift};
            if (ioctl(job->target.fd, BLKDISCARD_, where) == 0)
                continue;
            if (errno == ENOTTY && fallocate(job->target.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                             (off_t)where[0], (off_t)where[1]) == 0)
                continue;
            if (errno != EOPNOTSUPP && errno != ENOSYS) {
                failure(job, errno, true);
                return;
            }
        }
    }
}

void kl_execute(struct kl_job *job)
{
    const uint64_t at = lba_of(&job->sqe) << job->target.block_shift;
    job->status = 0;
    job->dw0 = job->dw1 = 0;
    if (job->cancelled) {
        job->status = KL_ABORTED;
        return;
    }
    if (job->target.kind == KL_PASSTHROUGH) {
        job->status = kl_ioctl(job->target.fd, false, &job->sqe, job->data, job->nbytes, 0, &job->dw0, &job->dw1);
        return;
    }
    switch (job->sqe.opcode) {
    case OP_FLUSH:
        if (fdatasync(job->target.fd))
            failure(job, errno, true);
        return;
    case OP_READ:
    case OP_WRITE:
        transfer(job, job->data, job->nbytes, at, job->sqe.opcode == OP_WRITE);
        return;
    case OP_WRITE_ZEROES:
        write_zeroes(job);
        return;
    case OP_DATASET_MANAGEMENT:
        deallocate(job);
        return;
    case OP_COMPARE:
    case OP_VERIFY:
        /* Also of NVMe: the ioctl's limit is one request of the block layer. */
        compare(job, job->sqe.opcode == OP_VERIFY);
        return;
    }
    if (job->target.kind == KL_NVME_BLOCK)
        job->status = kl_ioctl(job->target.fd, false, &job->sqe, job->data, job->nbytes, 0, &job->dw0, &job->dw1);
    else
        job->status = KL_INVALID_OPCODE | KL_DO_NOT_RETRY;
}

uint16_t kl_ioctl(int fd, bool admin, const struct nvq_sqe *sqe, void *data, uint32_t nbytes, uint32_t timeout_ms,
                  uint32_t *dw0, uint32_t *dw1)
{
    struct nvme_passthru_cmd64 command = {
        .opcode = sqe->opcode,
        .nsid = sqe->nsid,
        .cdw2 = sqe->cdw2,
        .cdw3 = sqe->cdw3,
        .addr = (uint64_t)(uintptr_t)data,
        .data_len = nbytes,
        .cdw10 = sqe->cdw10,
        .cdw11 = sqe->cdw11,
        .cdw12 = sqe->cdw12,
        .cdw13 = sqe->cdw13,
        .cdw14 = sqe->cdw14,
        .cdw15 = sqe->cdw15,
        .timeout_ms = timeout_ms,
    };
    const int rc = ioctl(fd, admin ? NVME_IOCTL_ADMIN64_CMD_ : NVME_IOCTL_IO64_CMD_, &command);
    if (rc < 0) {
        const int error = errno;
        *dw0 = KL_ERRNO | (uint32_t)error;
        *dw1 = 0;
        return kl_status_of(error, !admin && kl_changes_data(sqe->opcode));
    }
    *dw0 = (uint32_t)command.result;
    *dw1 = (uint32_t)(command.result >> 32);
    return (uint16_t)(rc & 0x7fff);
}

int kl_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
{
    enum { STATX_DIO = 0x2000, MEMORY_AT = 152 }; /* linux/stat.h: STATX_DIOALIGN, stx_dio_mem_align */
    uint32_t answer[64] = {0}; /* struct statx, which older headers don't have in full */
    *memory = *offset = 0;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIO, answer) < 0)
        return -errno;
    if (!(answer[0] & STATX_DIO))
        return -ENODATA; /* before 6.1 */
    *memory = answer[MEMORY_AT / 4];
    *offset = answer[MEMORY_AT / 4 + 1];
    return 0;
}
