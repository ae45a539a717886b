/*
 * vfio-user on the wire: message layouts and numbers (libvfio-user docs/vfio-user.rst, the same
 * text as QEMU's docs/interop/vfio-user.rst). What vfio-user borrows from VFIO is taken from
 * <linux/vfio.h>.
 */
#ifndef NVME_ASYNC_EMULATOR_VFU_PROTO_H
#define NVME_ASYNC_EMULATOR_VFU_PROTO_H

#include <linux/vfio.h>
#include <stdint.h>

enum vfu_command {
    VFU_VERSION = 1,
    VFU_DMA_MAP = 2,
    VFU_DMA_UNMAP = 3,
    VFU_DEVICE_GET_INFO = 4,
    VFU_DEVICE_GET_REGION_INFO = 5,
    VFU_DEVICE_GET_REGION_IO_FDS = 6,
    VFU_DEVICE_GET_IRQ_INFO = 7,
    VFU_DEVICE_SET_IRQS = 8,
    VFU_REGION_READ = 9,
    VFU_REGION_WRITE = 10,
    VFU_DMA_READ = 11,
    VFU_DMA_WRITE = 12,
    VFU_DEVICE_RESET = 13,
    VFU_REGION_WRITE_MULTI = 15,
    VFU_DEVICE_FEATURE = 16,
};

#define VFU_FLAG_TYPE_MASK 0xfu
#define VFU_FLAG_COMMAND 0x0u
#define VFU_FLAG_REPLY 0x1u
#define VFU_FLAG_NO_REPLY 0x10u
#define VFU_FLAG_ERROR 0x20u

#define VFU_MAJOR 0
#define VFU_MINOR 1

/* What this server reports in VERSION. */
#define VFU_MAX_MSG_FDS 16
#define VFU_MAX_DATA_XFER (1024u * 1024u)
#define VFU_MAX_DMA_MAPS 4096

/* VFIO_DMA_UNMAP_FLAG_ALL; older headers lack it. */
#define VFU_UNMAP_ALL 0x2u

#define VFU_IO_FD_IOEVENTFD 0

struct vfu_header {
    uint16_t msg_id;
    uint16_t command;
    uint32_t size; /* of the whole message, this header included */
    uint32_t flags;
    uint32_t error;
};

struct vfu_version {
    uint16_t major, minor; /* then JSON, NUL terminated, optional */
};

struct vfu_dma_map {
    uint32_t argsz, flags;
    uint64_t offset, address, size;
};

struct vfu_dma_unmap {
    uint32_t argsz, flags;
    uint64_t address, size;
};

struct vfu_device_info {
    uint32_t argsz, flags, num_regions, num_irqs;
};

struct vfu_region_info {
    uint32_t argsz, flags, index, cap_offset;
    uint64_t size, offset;
};

/* The one capability we give: a sparse mmap area. */
struct vfu_sparse_cap {
    uint16_t id, version;
    uint32_t next;
    uint32_t nr_areas, reserved;
    uint64_t offset, size;
};

struct vfu_io_fds {
    uint32_t argsz, flags, index, count;
};

struct vfu_ioeventfd {
    uint64_t offset, size;
    uint32_t fd_index, type, flags, padding;
    uint64_t datamatch;
};

struct vfu_irq_info {
    uint32_t argsz, flags, index, count;
};

struct vfu_irq_set {
    uint32_t argsz, flags, index, start, count;
};

struct vfu_region_access {
    uint64_t offset;
    uint32_t region, count;
};

struct vfu_multi_write {
    uint64_t offset;
    uint32_t region, count;
    uint8_t data[8];
};

_Static_assert(sizeof(struct vfu_header) == 16, "header");
_Static_assert(sizeof(struct vfu_version) == 4, "version");
_Static_assert(sizeof(struct vfu_dma_map) == 32, "dma map");
_Static_assert(sizeof(struct vfu_dma_unmap) == 24, "dma unmap");
_Static_assert(sizeof(struct vfu_device_info) == 16, "device info");
_Static_assert(sizeof(struct vfu_region_info) == 32, "region info");
_Static_assert(sizeof(struct vfu_sparse_cap) == 32, "sparse mmap capability");
_Static_assert(sizeof(struct vfu_io_fds) == 16, "io fds");
_Static_assert(sizeof(struct vfu_ioeventfd) == 40, "ioeventfd");
_Static_assert(sizeof(struct vfu_irq_info) == 16, "irq info");
_Static_assert(sizeof(struct vfu_irq_set) == 20, "irq set");
_Static_assert(sizeof(struct vfu_region_access) == 16, "region access");
_Static_assert(sizeof(struct vfu_multi_write) == 24, "multi write");

#endif
