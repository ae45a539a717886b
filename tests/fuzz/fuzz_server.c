/*
 * The vfio-user server of the emulated controller against a hostile client, after VERSION.
 *
 * Input: messages, each with a head of four bytes: the command; flags (1: the payload is the whole
 * message, header included; 2: with the descriptor of memory, 4: of an eventfd, 8: twice); the
 * length of the payload (16 bits).
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "emulator/vfu_server.h"

#define MAX_MESSAGES 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct vfu_server *server;
static int memory_fd, event_fd;
static uint64_t now = 1;

static void start(void)
{
    const struct emu_config config = {
        .n_namespaces = 1,
        .namespaces = {{.nbytes = 1 << 20, .block_size = 512, .medium = EMU_MEDIUM_RAM}},
        .n_io_queues = 2,
        .n_vectors = 3,
        .mqes = 63,
        .mdts = 5,
        .dbbuf = true,
        .vendor_id = 0x1b36,
        .serial = "FUZZ",
        .model = "fuzz",
        .firmware = "1.0",
    };
    char error[256];
    server = vfu_server_new(&config, 0, error);
    memory_fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!server || memory_fd < 0 || event_fd < 0 || ftruncate(memory_fd, 1 << 20))
        abort();
    vfu_server_watch(server, epoll_create1(EPOLL_CLOEXEC), NULL, NULL);
}

static void send_message(int fd, const void *head, size_t head_bytes, const void *payload, size_t nbytes, uint8_t flags)
{
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    int fds[4];
    unsigned n = 0;
    for (unsigned i = flags & 8 ? 2 : 1; i; i--) {
        if (flags & 2)
            fds[n++] = memory_fd;
        if (flags & 4)
            fds[n++] = event_fd;
    }
    struct iovec parts[] = {{(void *)(uintptr_t)head, head_bytes}, {(void *)(uintptr_t)payload, nbytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (n) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    }
    (void)sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* The server handles what there is, and its answers are thrown away. False: it has dropped the
 * client. */
static bool turn(int fd)
{
    static char answers[1 << 16];
    bool stays = true;
    now += 1000;
    for (unsigned i = 0; i < 3 && stays; i++) {
        stays = vfu_server_ready(server, now);
        for (unsigned polls = 0; stays && polls < 4; polls++)
            (void)emu_ctrl_poll(server->ctrl);
        while (recv(fd, answers, sizeof answers, MSG_DONTWAIT) > 0)
            ;
    }
    return stays;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct vfu_version version = {VFU_MAJOR, VFU_MINOR};
    const struct vfu_header hello = {.command = VFU_VERSION, .size = sizeof hello + sizeof version};
    int pair[2];
    bool stays;
    if (!server)
        start();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
        abort();
    vfu_server_open(server, pair[0], now);
    if (!size || data[0] != VFU_VERSION)
        send_message(pair[1], &hello, sizeof hello, &version, sizeof version, 0);
    stays = turn(pair[1]);
    for (unsigned i = 0; i < MAX_MESSAGES && stays && size >= 4; i++) {
        struct vfu_header header = {.msg_id = (uint16_t)i, .command = data[0]};
        const uint8_t flags = data[1];
        size_t nbytes = data[2] | (size_t)data[3] << 8;
        data += 4;
        size -= 4;
        nbytes = nbytes < size ? nbytes : size;
        header.size = (uint32_t)(sizeof header + nbytes);
        send_message(pair[1], &header, flags & 1 ? 0 : sizeof header, data, nbytes, flags);
        stays = turn(pair[1]);
        data += nbytes;
        size -= nbytes;
    }
    close(pair[1]);
    vfu_server_drop(server, "the input is over");
    return 0;
}
