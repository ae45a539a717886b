/*
 * The NVMe/TCP target of the emulated controller against a hostile host: the input is what the host
 * sends on a connection, after ICReq unless it begins with that.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "emulator/reactor.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct sockaddr_in address;

static void start(void)
{
    const struct emu_config config = {
        .n_namespaces = 1,
        .namespaces = {{.nbytes = 1 << 20, .block_size = 512, .medium = EMU_MEDIUM_RAM}},
        .n_io_queues = 2,
        .n_vectors = 3,
        .mqes = 63,
        .mdts = 5,
        .vendor_id = 0x1b36,
        .serial = "FUZZ",
        .model = "fuzz",
        .firmware = "1.0",
    };
    const struct emu_tcp_config tcp = {.nqn = "nqn.2024-01.test:fuzz", .in_capsule = 4096, .max_h2c = 8192};
    socklen_t length = sizeof address;
    char error[256];
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) || listen(fd, 16) ||
        getsockname(fd, (struct sockaddr *)&address, &length))
        abort();
    struct vfu_server *server = vfu_server_new(&config, 0, error);
    struct emu_reactor *reactor = emu_reactor_new("fuzz", error);
    struct emu_endpoint *endpoint = server && reactor ? emu_reactor_add(reactor, server) : NULL;
    if (!endpoint || emu_endpoint_tcp(endpoint, &tcp, 0, &fd, 1))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char answers[1 << 16];
    const struct linger at_once = {.l_onoff = 1}; /* no port is left in TIME_WAIT */
    const struct tcp_ic hello = {.ch = {.type = TCP_ICREQ, .hlen = sizeof hello, .plen = sizeof hello}};
    if (!address.sin_family)
        start();
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        abort();
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    if (!size || data[0] != TCP_ICREQ)
        (void)send(fd, &hello, sizeof hello, MSG_NOSIGNAL);
    (void)send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    /* The target has read everything when it closes. */
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    while (poll(&entry, 1, 5000) == 1 && recv(fd, answers, sizeof answers, 0) > 0)
        ;
    close(fd);
    return 0;
}
