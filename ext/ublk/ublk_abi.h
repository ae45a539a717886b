/*
 * ublk's interface to user space (linux/ublk_cmd.h), as far as it is used here, so that what is
 * built on a system with older headers runs on a newer kernel.
 */
#ifndef NVME_ASYNC_UBLK_ABI_H
#define NVME_ASYNC_UBLK_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* Commands to /dev/ublk-control. Since Linux 6.4 they are encoded as ioctl numbers. */
enum ublk_control_command {
    UBLK_GET_DEV_INFO = 0x02,
    UBLK_ADD_DEV = 0x04,
    UBLK_DEL_DEV = 0x05,
    UBLK_START_DEV = 0x06,
    UBLK_STOP_DEV = 0x07,
    UBLK_SET_PARAMS = 0x08,
    UBLK_GET_PARAMS = 0x09,
    UBLK_START_USER_RECOVERY = 0x10,
    UBLK_END_USER_RECOVERY = 0x11,
    UBLK_GET_FEATURES = 0x13, /* 6.5 */
    UBLK_UPDATE_SIZE = 0x15,  /* 6.16 */
};

/* Commands to /dev/ublkcN. */
enum ublk_io_command {
    UBLK_FETCH_REQ = 0x20,
    UBLK_COMMIT_AND_FETCH_REQ = 0x21,
};

enum ublk_flag {
    UBLK_F_USER_RECOVERY = 1u << 3,
    UBLK_F_USER_RECOVERY_REISSUE = 1u << 4,
    UBLK_F_CMD_IOCTL_ENCODE = 1u << 6,
    UBLK_F_UPDATE_SIZE = 1u << 10,
};

enum ublk_state { UBLK_DEAD = 0, UBLK_LIVE = 1, UBLK_QUIESCED = 2, UBLK_FAIL_IO = 3 };

enum ublk_op {
    UBLK_OP_READ = 0,
    UBLK_OP_WRITE = 1,
    UBLK_OP_FLUSH = 2,
    UBLK_OP_DISCARD = 3,
    UBLK_OP_WRITE_ZEROES = 5,
};

enum ublk_op_flag {
    UBLK_IO_FUA = 1u << 13,
    UBLK_IO_NOUNMAP = 1u << 15,
};

enum ublk_attribute {
    UBLK_ATTR_READ_ONLY = 1u << 0,
    UBLK_ATTR_ROTATIONAL = 1u << 1,
    UBLK_ATTR_VOLATILE_CACHE = 1u << 2,
    UBLK_ATTR_FUA = 1u << 3,
};

enum ublk_param_type { UBLK_PARAM_BASIC = 1u << 0, UBLK_PARAM_DISCARD = 1u << 1 };

#define UBLK_MAX_DEPTH 4096u
#define UBLK_SECTOR_SHIFT 9
#define UBLK_RESULT_ABORT (-19) /* -ENODEV: the device is being stopped, or its server was */

struct ublk_control_cmd {
    uint32_t dev_id;
    uint16_t queue_id; /* 0xffff: of no queue */
    uint16_t len;      /* of the buffer at addr */
    uint64_t addr;
    uint64_t data;
    uint16_t dev_path_len, pad;
    uint32_t reserved;
};
_Static_assert(sizeof(struct ublk_control_cmd) == 32, "ublksrv_ctrl_cmd");
_Static_assert(offsetof(struct ublk_control_cmd, addr) == 8, "ublksrv_ctrl_cmd");
_Static_assert(offsetof(struct ublk_control_cmd, data) == 16, "ublksrv_ctrl_cmd");

struct ublk_device_info {
    uint16_t nr_hw_queues, queue_depth, state, pad0;
    uint32_t max_io_buf_bytes, dev_id;
    int32_t ublksrv_pid;
    uint32_t pad1;
    uint64_t flags;
    uint64_t ublksrv_flags; /* the server's own: the driver keeps it */
    uint32_t owner_uid, owner_gid;
    uint64_t reserved1, reserved2;
};
_Static_assert(sizeof(struct ublk_device_info) == 64, "ublksrv_ctrl_dev_info");
_Static_assert(offsetof(struct ublk_device_info, ublksrv_pid) == 16, "ublksrv_ctrl_dev_info");
_Static_assert(offsetof(struct ublk_device_info, ublksrv_flags) == 32, "ublksrv_ctrl_dev_info");

struct ublk_basic {
    uint32_t attrs;
    uint8_t logical_bs_shift, physical_bs_shift, io_opt_shift, io_min_shift;
    uint32_t max_sectors, chunk_sectors;
    uint64_t dev_sectors, virt_boundary_mask;
};
_Static_assert(sizeof(struct ublk_basic) == 32, "ublk_param_basic");

struct ublk_discard {
    uint32_t alignment, granularity, max_sectors, max_write_zeroes_sectors;
    uint16_t max_segments, reserved;
};
_Static_assert(sizeof(struct ublk_discard) == 20, "ublk_param_discard");

/* The kernel's has more parts after these, which `types` leaves out. */
struct ublk_parameters {
    uint32_t len, types;
    struct ublk_basic basic;
    struct ublk_discard discard;
};
_Static_assert(offsetof(struct ublk_parameters, basic) == 8, "ublk_params");
_Static_assert(offsetof(struct ublk_parameters, discard) == 40, "ublk_params");

/* What a tag's request is: in the memory that /dev/ublkcN maps, one for each tag. */
struct ublk_descriptor {
    uint32_t op_flags; /* the operation is in the low 8 bits */
    uint32_t nr_sectors;
    uint64_t start_sector, addr;
};
_Static_assert(sizeof(struct ublk_descriptor) == 24, "ublksrv_io_desc");

/* Of UBLK_FETCH_REQ and UBLK_COMMIT_AND_FETCH_REQ, in the entry itself. */
struct ublk_io_cmd {
    uint16_t q_id, tag;
    int32_t result; /* bytes, or a negative errno */
    uint64_t addr;  /* of the tag's buffer */
};
_Static_assert(sizeof(struct ublk_io_cmd) == 16, "ublksrv_io_cmd");

/* Whether the kernel writes to the command's buffer is part of the ioctl number. */
static inline uint32_t ublk_control_number(unsigned command)
{
    switch (command) {
    case UBLK_GET_DEV_INFO:
    case UBLK_GET_PARAMS:
    case UBLK_GET_FEATURES:
        return (uint32_t)_IOC(_IOC_READ, 'u', command, sizeof(struct ublk_control_cmd));
    default:
        return (uint32_t)_IOC(_IOC_READ | _IOC_WRITE, 'u', command, sizeof(struct ublk_control_cmd));
    }
}

static inline uint32_t ublk_io_number(unsigned command)
{
    return (uint32_t)_IOC(_IOC_READ | _IOC_WRITE, 'u', command, sizeof(struct ublk_io_cmd));
}

#endif
