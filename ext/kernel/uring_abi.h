/*
 * io_uring's and the NVMe driver's interfaces to user space (linux/io_uring.h, linux/nvme_ioctl.h),
 * as far as they are used here, so that a build on an old system runs on a new one and needs no
 * library.
 */
#ifndef NVME_ASYNC_KERNEL_URING_ABI_H
#define NVME_ASYNC_KERNEL_URING_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* The numbers are the same on every architecture. */
enum { SYS_URING_SETUP = 425, SYS_URING_ENTER = 426, SYS_URING_REGISTER = 427 };

enum uring_setup_flag {
    URING_SETUP_IOPOLL = 1u << 0,
    URING_SETUP_CQSIZE = 1u << 3,
    URING_SETUP_CLAMP = 1u << 4,
    URING_SETUP_COOP_TASKRUN = 1u << 8, /* 5.19: completions interrupt no running thread */
    URING_SETUP_TASKRUN_FLAG = 1u << 9,
    URING_SETUP_SQE128 = 1u << 10,
    URING_SETUP_CQE32 = 1u << 11,
};

enum uring_opcode {
    URING_OP_FSYNC = 3,
    URING_OP_READ_FIXED = 4,
    URING_OP_WRITE_FIXED = 5,
    URING_OP_ASYNC_CANCEL = 14,
    URING_OP_READ = 22,
    URING_OP_WRITE = 23,
    URING_OP_URING_CMD = 46,
};

enum { URING_FSYNC_DATASYNC = 1u };
enum { URING_ENTER_GETEVENTS = 1u };
enum { URING_SQ_CQ_OVERFLOW = 1u << 1, URING_SQ_TASKRUN = 1u << 2 };
enum { URING_FEAT_SINGLE_MMAP = 1u, URING_FEAT_NODROP = 1u << 1 };
enum uring_register {
    URING_REGISTER_EVENTFD = 4,
    URING_REGISTER_PROBE = 8,
    URING_REGISTER_BUFFERS2 = 15,
    URING_REGISTER_BUFFERS_UPDATE = 16,
};
enum { URING_RSRC_REGISTER_SPARSE = 1u };

/* mmap offsets of the ring's descriptor */
#define URING_OFF_SQ_RING 0ull
#define URING_OFF_CQ_RING 0x8000000ull
#define URING_OFF_SQES 0x10000000ull

struct uring_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t resv2;
};

struct uring_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t resv2;
};

struct uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct uring_sq_offsets sq_off;
    struct uring_cq_offsets cq_off;
};
_Static_assert(sizeof(struct uring_params) == 120, "io_uring_params");

/* The first 64 bytes of an entry; 64 more follow with URING_SETUP_SQE128. */
struct uring_sqe {
    uint8_t opcode, flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off; /* also: cmd_op of URING_OP_URING_CMD, in the first half */
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags; /* rw_flags, fsync_flags, cancel_flags, uring_cmd_flags */
    uint64_t user_data;
    uint16_t buf_index, personality;
    int32_t file_index;
    uint64_t addr3; /* the command of URING_OP_URING_CMD begins here, 16 bytes or 80 with SQE128 */
    uint64_t pad;
};
_Static_assert(sizeof(struct uring_sqe) == 64 && offsetof(struct uring_sqe, user_data) == 32, "io_uring_sqe");
_Static_assert(offsetof(struct uring_sqe, addr3) == 48, "io_uring_sqe");

/* 16 bytes more follow with URING_SETUP_CQE32. */
struct uring_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};
_Static_assert(sizeof(struct uring_cqe) == 16, "io_uring_cqe");

struct uring_rsrc_register {
    uint32_t nr, flags;
    uint64_t resv2, data, tags;
};

struct uring_rsrc_update2 {
    uint32_t offset, resv;
    uint64_t data, tags;
    uint32_t nr, resv2;
};

/* linux/nvme_ioctl.h */
struct nvme_uring_cmd {
    uint8_t opcode, flags;
    uint16_t rsvd1;
    uint32_t nsid, cdw2, cdw3;
    uint64_t metadata, addr;
    uint32_t metadata_len, data_len;
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
    uint32_t timeout_ms, rsvd2;
};
_Static_assert(sizeof(struct nvme_uring_cmd) == 72, "nvme_uring_cmd");

struct nvme_passthru_cmd64 {
    uint8_t opcode, flags;
    uint16_t rsvd1;
    uint32_t nsid, cdw2, cdw3;
    uint64_t metadata, addr;
    uint32_t metadata_len, data_len;
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
    uint32_t timeout_ms, rsvd2;
    uint64_t result;
};
_Static_assert(sizeof(struct nvme_passthru_cmd64) == 80, "nvme_passthru_cmd64");

#define NVME_IOCTL_ID_ _IO('N', 0x40)
#define NVME_IOCTL_ADMIN64_CMD_ _IOWR('N', 0x47, struct nvme_passthru_cmd64)
#define NVME_IOCTL_IO64_CMD_ _IOWR('N', 0x48, struct nvme_passthru_cmd64)
#define NVME_URING_CMD_IO_ _IOWR('N', 0x80, struct nvme_uring_cmd)
#define BLKDISCARD_ _IO(0x12, 119)

#endif
