#define _GNU_SOURCE
#include "emulator/vfu_message.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "emulator/vfu_server.h"

/* A copy of the request's fixed part; a longer payload is fine (clients pad to argsz), a shorter
 * one is not. */
#define REQUEST(type, name)    \
    struct type name;          \
    if (nbytes < sizeof(name)) \
        return EINVAL;         \
    memcpy(&name, server->conn.payload, sizeof(name))

static int reply_with(struct vfu_server *server, struct vfu_reply *reply, const void *data, size_t nbytes)
{
    uint8_t *to = vfu_conn_reply(&server->conn, nbytes);

    if (to == NULL)
        return ENOMEM;
    memcpy(to, data, nbytes);
    reply->nbytes = nbytes;
    return 0;
}

/* Whether the client's JSON has "write_multiple": true. Nothing else in it matters here: this
 * server never sends more than one descriptor or more data than it was asked for. */
static bool offers_write_multiple(const uint8_t *json, size_t nbytes)
{
    static const char key[] = "\"write_multiple\"";
    const uint8_t *at = memmem(json, nbytes, key, sizeof(key) - 1), *end = json + nbytes;

    if (at == NULL)
        return false;
    for (at += sizeof(key) - 1; at < end && (*at == ' ' || *at == ':'); at++)
        ;
    return end - at >= 4 && memcmp(at, "true", 4) == 0;
}

static int do_version(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    struct {
        struct vfu_version version;
        char json[256];
    } answer;
    int length;
    REQUEST(vfu_version, version);

    if (server->negotiated || version.major != VFU_MAJOR)
        return EINVAL;
    server->write_multi = offers_write_multiple(server->conn.payload + sizeof(version), nbytes - sizeof(version));
    answer.version.major = VFU_MAJOR;
    answer.version.minor = version.minor < VFU_MINOR ? version.minor : VFU_MINOR;
    length = snprintf(
        answer.json, sizeof(answer.json),
        "{\"capabilities\":{\"max_msg_fds\":%u,\"max_data_xfer_size\":%u,\"max_dma_maps\":%u,\"pgsizes\":4096%s}}",
        VFU_MAX_MSG_FDS, VFU_MAX_DATA_XFER, VFU_MAX_DMA_MAPS, server->write_multi ? ",\"write_multiple\":true" : "");
    server->negotiated = true;
    return reply_with(server, reply, &answer, sizeof(answer.version) + (size_t)length + 1);
}

static int do_dma_map(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    /* Bits 2 and 3 give the access that the client prefers (mmap, or read and write calls); this
     * server always uses mmap. */
    const uint32_t known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE | 1 << 2 | 1 << 3;
    int error;
    REQUEST(vfu_dma_map, map);

    if (map.argsz < sizeof(map) || map.flags & ~known || server->conn.n_fds > 1)
        return EINVAL;
    error = vfu_dma_map(&server->dma, map.address, map.size, map.offset, map.flags,
                        server->conn.n_fds ? server->conn.fds[0] : -1);
    if (error == 0)
        emu_ctrl_dma_changed(server->ctrl);
    return error;
}

static int do_dma_unmap(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    REQUEST(vfu_dma_unmap, unmap);

    if (unmap.argsz < sizeof(unmap))
        return EINVAL;
    if (unmap.flags & ~VFU_UNMAP_ALL) /* dirty bitmaps among them */
        return ENOTSUP;
    if (unmap.flags & VFU_UNMAP_ALL) {
        if (unmap.address != 0 || unmap.size != 0)
            return EINVAL;
        emu_ctrl_dma_changed(server->ctrl);
        vfu_dma_unmap_all(&server->dma);
    } else {
        /* Before the memory goes: the reply promises that nothing refers to it. */
        emu_ctrl_dma_changed(server->ctrl);
        if (vfu_dma_unmap(&server->dma, unmap.address, unmap.size) != 0)
            return ENOENT;
    }
    unmap.argsz = sizeof(unmap);
    return reply_with(server, reply, &unmap, sizeof(unmap));
}

static int do_device_info(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    REQUEST(vfu_device_info, info);

    if (info.argsz < sizeof(info))
        return EINVAL;
    info.argsz = sizeof(info);
    info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
    info.num_regions = VFIO_PCI_NUM_REGIONS;
    info.num_irqs = VFIO_PCI_NUM_IRQS;
    return reply_with(server, reply, &info, sizeof(info));
}

static uint64_t region_size(const struct vfu_server *server, uint32_t index)
{
    uint64_t nbytes;

    switch (index) {
    case VFU_REGION_BAR:
        (void)emu_ctrl_region(server->ctrl, &nbytes);
        return nbytes;
    case VFIO_PCI_BAR0_REGION_INDEX:
        return EMU_BAR0_SIZE;
    case VFU_MSIX_BAR:
        return VFU_MSIX_BAR_SIZE;
    case VFIO_PCI_CONFIG_REGION_INDEX:
        return VFU_CONFIG_SIZE;
    default:
        return 0;
    }
}

static int do_region_info(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    struct {
        struct vfu_region_info info;
        struct vfu_sparse_cap sparse;
    } answer = {.sparse = {
                    .id = VFIO_REGION_INFO_CAP_SPARSE_MMAP,
                    .version = 1,
                    .nr_areas = 1,
                    .offset = EMU_DOORBELL_OFFSET,
                    .size = EMU_BAR0_SIZE - EMU_DOORBELL_OFFSET,
                }};
    REQUEST(vfu_region_info, info);

    if (info.argsz < sizeof(info) || info.index >= VFIO_PCI_NUM_REGIONS)
        return EINVAL;
    answer.info = (struct vfu_region_info){
        .argsz = sizeof(info),
        .index = info.index,
        .size = region_size(server, info.index),
    };
    if (answer.info.size != 0)
        answer.info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    if (info.index == VFU_REGION_BAR && answer.info.size) {
        answer.info.flags |= VFIO_REGION_INFO_FLAG_MMAP; /* all of it */
        reply->fd = emu_ctrl_region(server->ctrl, &answer.info.size);
        server->region_given = true;
    }
    if (info.index != VFIO_PCI_BAR0_REGION_INDEX)
        return reply_with(server, reply, &answer, sizeof(info));

    answer.info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    answer.info.argsz = sizeof(answer);
    /* Without room for the capability, only its size is returned, and the client repeats the
     * request. FLAG_CAPS must not be set then: QEMU refuses a region with that flag and no valid
     * offset before it checks argsz. */
    if (info.argsz < sizeof(answer))
        return reply_with(server, reply, &answer, sizeof(info));
    answer.info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
    answer.info.cap_offset = sizeof(info);
    reply->fd = emu_ctrl_doorbell_fd(server->ctrl);
    server->doorbells_given = true;
    return reply_with(server, reply, &answer, sizeof(answer));
}

static int do_region_io_fds(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    struct {
        struct vfu_io_fds io;
        struct vfu_ioeventfd doorbells;
    } answer = {.doorbells = {
                    .offset = EMU_DOORBELL_OFFSET,
                    .size = 0, /* the width of the store doesn't matter */
                    .fd_index = 0,
                    .type = VFU_IO_FD_IOEVENTFD,
                }};
    REQUEST(vfu_io_fds, io);

    if (io.argsz < sizeof(io) || io.flags != 0 || io.index >= VFIO_PCI_NUM_REGIONS)
        return EINVAL;
    answer.io = (struct vfu_io_fds){.argsz = sizeof(io), .index = io.index};
    if (io.index != VFIO_PCI_BAR0_REGION_INDEX)
        return reply_with(server, reply, &answer, sizeof(io));
    answer.io.count = 1;
    answer.io.argsz = sizeof(answer);
    if (io.argsz < sizeof(answer))
        return reply_with(server, reply, &answer, sizeof(io));
    if (server->kick.fd < 0) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), error;

        if (fd < 0)
            return errno;
        error = vfu_watch_set(&server->kick, fd);
        if (error) {
            close(fd);
            return error;
        }
    }
    reply->fd = server->kick.fd;
    return reply_with(server, reply, &answer, sizeof(answer));
}

static int do_irq_info(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    REQUEST(vfu_irq_info, info);

    if (info.argsz < sizeof(info) || info.index >= VFIO_PCI_NUM_IRQS)
        return EINVAL;
    info.argsz = sizeof(info);
    info.count = vfu_irqs_count(&server->irqs, info.index, &info.flags);
    return reply_with(server, reply, &info, sizeof(info));
}

static int do_set_irqs(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    REQUEST(vfu_irq_set, set);

    if (set.argsz < sizeof(set))
        return EINVAL;
    return vfu_irqs_set(&server->irqs, &set, server->conn.payload + sizeof(set), nbytes - sizeof(set), server->conn.fds,
                        server->conn.n_fds);
}

/* Registers are accessed in one piece of 4 or 8 bytes, naturally aligned (NVMe over PCIe Transport
 * 1.0, 3.1.1). */
static bool is_register(uint64_t offset, uint32_t count)
{
    return (count == 4 || count == 8) && offset % count == 0;
}

static int region_read(struct vfu_server *server, uint32_t region, uint64_t offset, uint32_t count, uint8_t *data)
{
    uint64_t value, pending[2];

    if (!region_size(server, region) || offset > region_size(server, region) ||
        count > region_size(server, region) - offset)
        return EINVAL;
    switch (region) {
    case VFIO_PCI_BAR0_REGION_INDEX:
        if (!is_register(offset, count))
            return EINVAL;
        value = emu_ctrl_read(server->ctrl, (uint32_t)offset, count);
        memcpy(data, &value, count);
        return 0;
    case VFU_REGION_BAR:
        memcpy(data, emu_ctrl_region_memory(server->ctrl) + offset, count);
        return 0;
    case VFU_MSIX_BAR:
        vfu_irqs_pending(&server->irqs, pending);
        for (uint32_t i = 0; i < count; i++) {
            uint64_t at = offset + i;

            if (at < VFU_MSIX_PBA_OFFSET)
                data[i] = server->msix_table[at];
            else if (at < VFU_MSIX_PBA_OFFSET + sizeof(pending))
                data[i] = ((const uint8_t *)pending)[at - VFU_MSIX_PBA_OFFSET];
            else
                data[i] = 0;
        }
        return 0;
    default:
        vfu_irqs_update_pin(&server->irqs); /* Interrupt Status */
        vfu_pci_read(&server->pci, (uint32_t)offset, data, count);
        return 0;
    }
}

static int region_write(struct vfu_server *server, uint32_t region, uint64_t offset, uint32_t count,
                        const uint8_t *data)
{
    uint64_t value = 0;

    if (!region_size(server, region) || offset > region_size(server, region) ||
        count > region_size(server, region) - offset)
        return EINVAL;
    switch (region) {
    case VFIO_PCI_BAR0_REGION_INDEX:
        if (!is_register(offset, count))
            return EINVAL;
        memcpy(&value, data, count);
        emu_ctrl_write(server->ctrl, (uint32_t)offset, count, value);
        vfu_irqs_update_pin(&server->irqs);
        return 0;
    case VFU_REGION_BAR:
        memcpy(emu_ctrl_region_memory(server->ctrl) + offset, data, count);
        return 0;
    case VFU_MSIX_BAR:
        for (uint32_t i = 0; i < count && offset + i < VFU_MSIX_PBA_OFFSET; i++)
            server->msix_table[offset + i] = data[i];
        return 0;
    default:
        if (vfu_pci_write(&server->pci, (uint32_t)offset, data, count))
            vfu_server_reset(server);
        vfu_irqs_update_pin(&server->irqs);
        return 0;
    }
}

static int do_region_read(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    uint8_t *to;
    REQUEST(vfu_region_access, access);

    if (access.count > VFU_MAX_DATA_XFER)
        return EINVAL;
    to = vfu_conn_reply(&server->conn, sizeof(access) + access.count);
    if (to == NULL)
        return ENOMEM;
    memcpy(to, &access, sizeof(access));
    reply->nbytes = sizeof(access) + access.count;
    return region_read(server, access.region, access.offset, access.count, to + sizeof(access));
}

static int do_region_write(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    int error;
    REQUEST(vfu_region_access, access);

    if (access.count != nbytes - sizeof(access))
        return EINVAL;
    error = region_write(server, access.region, access.offset, access.count, server->conn.payload + sizeof(access));
    return error ? error : reply_with(server, reply, &access, sizeof(access));
}

/* Stops at the first refused write; the reply counts the completed ones. */
static int do_region_write_multi(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    uint64_t count, done;

    if (!server->write_multi)
        return ENOTSUP;
    if (nbytes < sizeof(count))
        return EINVAL;
    memcpy(&count, server->conn.payload, sizeof(count));
    if (count != (nbytes - sizeof(count)) / sizeof(struct vfu_multi_write))
        return EINVAL;
    for (done = 0; done < count; done++) {
        struct vfu_multi_write one;

        memcpy(&one, server->conn.payload + sizeof(count) + done * sizeof(one), sizeof(one));
        if (one.count > sizeof(one.data) || region_write(server, one.region, one.offset, one.count, one.data) != 0)
            break;
    }
    if (done < count && done == 0)
        return EINVAL;
    return reply_with(server, reply, &done, sizeof(done));
}

int vfu_message(struct vfu_server *server, size_t nbytes, struct vfu_reply *reply)
{
    switch (server->conn.header.command) {
    case VFU_VERSION:
        return do_version(server, nbytes, reply);
    case VFU_DMA_MAP:
        return do_dma_map(server, nbytes, reply);
    case VFU_DMA_UNMAP:
        return do_dma_unmap(server, nbytes, reply);
    case VFU_DEVICE_GET_INFO:
        return do_device_info(server, nbytes, reply);
    case VFU_DEVICE_GET_REGION_INFO:
        return do_region_info(server, nbytes, reply);
    case VFU_DEVICE_GET_REGION_IO_FDS:
        return do_region_io_fds(server, nbytes, reply);
    case VFU_DEVICE_GET_IRQ_INFO:
        return do_irq_info(server, nbytes, reply);
    case VFU_DEVICE_SET_IRQS:
        return do_set_irqs(server, nbytes, reply);
    case VFU_REGION_READ:
        return do_region_read(server, nbytes, reply);
    case VFU_REGION_WRITE:
        return do_region_write(server, nbytes, reply);
    case VFU_DEVICE_RESET:
        vfu_server_reset(server);
        return 0;
    case VFU_REGION_WRITE_MULTI:
        return do_region_write_multi(server, nbytes, reply);
    default:
        return ENOTSUP;
    }
}
