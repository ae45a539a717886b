"""The built-in NVMe controller: reactor threads and the controllers they serve. See
_emulator.pyi for the contract.
"""

import errno
import os
import time

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strncpy
from posix.unistd cimport getpid

from nvme_async.errors import ConfigurationError


cdef extern from "emulator/ctrl.h" nogil:
    enum: EMU_MAX_IO_QUEUES
    enum: EMU_MAX_VECTORS
    enum: EMU_MAX_NAMESPACES
    enum emu_medium:
        EMU_MEDIUM_RAM
        EMU_MEDIUM_FILE
        EMU_MEDIUM_NULL
    enum: EMU_MAX_FORMATS
    struct emu_format:
        uint32_t block_size
        uint16_t metadata
        uint8_t pif
        uint8_t sts
    struct emu_ns_config:
        uint64_t nbytes
        uint32_t block_size
        uint16_t metadata
        uint8_t pif
        uint8_t dps
        bint extended
        emu_medium medium
        const char *path
    struct emu_extras:
        uint64_t capacity
        emu_medium medium
        const char *path
        bint self_test
        bint sanitize
        bint lba_status
        bint endurance
        bint telemetry
        bint persistent_events
        bint security
        bint write_cache
        uint64_t self_test_ns
        uint64_t sanitize_ns
        unsigned firmware_slots
        unsigned ana_groups
        bint key_value
        bint zoned
        uint64_t zone_nbytes
        uint64_t zone_capacity_nbytes
        uint32_t max_open
        uint32_t max_active
        uint8_t zasl
        bint save_features
        bint lockdown
        uint32_t boot_nbytes
        unsigned power_states
        uint64_t hmb_nbytes
        uint64_t hmb_min_nbytes
        uint32_t hmb_entry_nbytes
        uint16_t hmb_entries
        uint32_t fused_blocks
        uint8_t copy_formats
        unsigned fdp_handles
        unsigned fdp_groups
        uint64_t fdp_unit_nbytes
        unsigned streams
        uint16_t retry_delays[3]
        unsigned sgl
        uint64_t cmb_nbytes
        uint8_t cmb_uses
        bint capacity_management
        unsigned secondary
        bint boot_protection
        uint64_t pmr_nbytes
        const char *pmr_path
        uint8_t pmr_health
        uint64_t pmr_ready_ns
    enum: EMU_SGL_BYTE, EMU_SGL_DWORD, EMU_SGL_BIT_BUCKET, EMU_SGL_METADATA, EMU_SGL_LONGER
    enum: EMU_MAX_CHANNELS
    struct emu_timing:
        uint64_t latency_ns
        uint64_t jitter_ns
        uint64_t bytes_per_second
        unsigned channels
    struct emu_config:
        unsigned n_namespaces
        emu_ns_config namespaces[16]
        unsigned n_io_queues
        unsigned n_vectors
        uint32_t mqes
        uint32_t mdts
        bint dbbuf
        bint no_effects
        unsigned n_formats
        emu_format formats[16]
        emu_extras extras
        emu_timing timing
        uint64_t format_ns
        bint adaptive_irqs
        uint8_t aggregation_threshold
        uint8_t aggregation_time
        uint16_t vendor_id
        uint16_t subsystem_vendor_id
        uint16_t device_id
        uint16_t subsystem_id
        char serial[21]
        char model[41]
        char firmware[9]
    struct emu_ctrl:
        pass

cdef extern from "emulator/vfu_server.h" nogil:
    struct vfu_conn:
        int fd
        const char *reason
    struct vfu_dma:
        unsigned n_ranges
    struct vfu_irqs:
        unsigned n_assigned
    struct vfu_stats:
        uint64_t clients
        uint64_t messages
        uint64_t refused
        uint64_t interrupts
    struct vfu_server:
        emu_ctrl *ctrl
        vfu_conn conn
        vfu_dma dma
        vfu_irqs irqs
        vfu_stats stats
        bint negotiated
        bint kicked
    vfu_server *vfu_server_new(const emu_config *config, uint64_t patience_ns, char *err)
    void vfu_server_free(vfu_server *server)

cdef extern from "emulator/tcp_target.h" nogil:
    enum: TCP_NQN_MAX, TCP_MAX_PORTS, TCP_MAX_REFERRALS
    struct emu_tcp_referral:
        char *traddr
        char *trsvcid
    struct emu_tcp_config:
        char *nqn
        uint32_t in_capsule, max_h2c, r2t_bytes, c2h_bytes
        uint8_t cpda
        bint no_header_digest, no_data_digest, always_success
        unsigned n_referrals
        emu_tcp_referral *referrals
        bint tls
        emu_tcp_referral *fronts
    struct emu_tcp_stats:
        uint64_t connections, associations, refused, commands, header_digest_errors, data_digest_errors, protocol_errors
        uint64_t keep_alive_timeouts
        unsigned open_connections, controllers

cdef extern from "emulator/reactor.h" nogil:
    struct emu_reactor:
        pass
    struct emu_endpoint:
        pass
    struct emu_reactor_stats:
        uint64_t sleeps
        uint64_t naps
        uint64_t cpu_ns
        uint64_t yields
        uint64_t dear_yields
        unsigned endpoints
        unsigned active
    emu_reactor *emu_reactor_new(const char *name, char *err)
    void emu_reactor_free(emu_reactor *reactor)
    void emu_reactor_get_stats "emu_reactor_stats"(emu_reactor *reactor, emu_reactor_stats *stats)
    emu_endpoint *emu_reactor_add(emu_reactor *reactor, vfu_server *server)
    vfu_server *emu_reactor_remove(emu_endpoint *endpoint)
    int emu_endpoint_attach(emu_endpoint *endpoint, int fd)
    int emu_endpoint_listen(emu_endpoint *endpoint, int fd)
    void emu_endpoint_drop(emu_endpoint *endpoint)
    int emu_endpoint_tcp(emu_endpoint *endpoint, const emu_tcp_config *config, uint64_t patience_ns, const int *fds, unsigned n)
    void emu_endpoint_tcp_drop(emu_endpoint *endpoint)
    int emu_endpoint_tcp_port(emu_endpoint *endpoint, unsigned port, bint open)
    int emu_endpoint_tcp_ana(emu_endpoint *endpoint, unsigned port, uint32_t group, uint8_t state)
    void emu_endpoint_tcp_stats(emu_endpoint *endpoint, emu_tcp_stats *stats)
    void emu_endpoint_call(emu_endpoint *endpoint, void (*fn)(void *arg) noexcept nogil, void *arg)


MAX_IO_QUEUES = EMU_MAX_IO_QUEUES
MAX_VECTORS = EMU_MAX_VECTORS
MAX_NAMESPACES = EMU_MAX_NAMESPACES
MAX_CHANNELS = EMU_MAX_CHANNELS

include "config.pxi"


cdef class Reactor:
    cdef emu_reactor *reactor
    cdef int pid
    cdef int users

    def __init__(self, name="nvme-emulator"):
        cdef char err[256]
        cdef bytes encoded = name.encode()[:15]
        if self.reactor is not NULL:
            raise RuntimeError("a reactor can be started only once")
        self.pid = os.getpid()
        self.reactor = emu_reactor_new(encoded, err)
        if self.reactor is NULL:
            raise OSError((<bytes>err).decode(errors="replace"))

    cdef emu_reactor *_live(self) except NULL:
        if self.reactor is NULL:
            raise ValueError("the reactor is closed")
        if self.pid != os.getpid():
            raise RuntimeError("the reactor belongs to the process that started it, not to its fork()ed child")
        return self.reactor

    @property
    def closed(self):
        return self.reactor is NULL

    def stats(self):
        cdef emu_reactor *reactor = self._live()
        cdef emu_reactor_stats stats
        with nogil:
            emu_reactor_get_stats(reactor, &stats)
        return {
            "sleeps": stats.sleeps,
            "naps": stats.naps,
            "cpu_ns": stats.cpu_ns,
            "yields": stats.yields,
            "dear_yields": stats.dear_yields,
            "controllers": stats.endpoints,
            "active": stats.active,
        }

    def close(self):
        cdef emu_reactor *reactor = self.reactor
        if reactor is NULL:
            return
        if self.users and self.pid == os.getpid():
            raise ValueError(f"the reactor still serves {self.users} controllers")
        self.reactor = NULL
        with nogil:
            emu_reactor_free(reactor)

    def __dealloc__(self):
        if self.reactor is not NULL:
            with nogil:
                emu_reactor_free(self.reactor)


cdef struct Snapshot:
    vfu_server *server
    vfu_stats stats
    int fd
    unsigned mappings
    unsigned vectors
    bint negotiated
    bint kicked
    const char *reason


cdef void take_snapshot(void *arg) noexcept nogil:
    cdef Snapshot *snapshot = <Snapshot *>arg
    snapshot.stats = snapshot.server.stats
    snapshot.fd = snapshot.server.conn.fd
    snapshot.mappings = snapshot.server.dma.n_ranges
    snapshot.vectors = snapshot.server.irqs.n_assigned
    snapshot.negotiated = snapshot.server.negotiated
    snapshot.kicked = snapshot.server.kicked
    snapshot.reason = snapshot.server.conn.reason


@cython.no_gc_clear  # __dealloc__ still needs _reactor
cdef class Controller:
    cdef vfu_server *server
    cdef emu_endpoint *endpoint
    cdef Reactor _reactor
    cdef int calls  # under way without the interpreter lock; close() waits for them
    cdef bint closing
    cdef object __weakref__

    def __init__(self, config, Reactor reactor not None, *, double patience=3.0):
        cdef emu_config c
        cdef char err[256]
        cdef list keep = []
        cdef uint64_t patience_ns = <uint64_t>(patience * 1e9)
        cdef emu_reactor *live = reactor._live()
        if self.server is not NULL:
            raise RuntimeError("a controller can be initialized only once")
        if not patience >= 0:
            raise ConfigurationError(f"patience of {patience} s: must be 0 (for ever) or more")
        fill_config(&c, config, keep)
        reactor.users += 1  # before the interpreter lock is let go: it must not be closed meanwhile
        with nogil:
            self.server = vfu_server_new(&c, patience_ns, err)
            if self.server is not NULL:
                self.endpoint = emu_reactor_add(live, self.server)
        if self.endpoint is not NULL:
            self._reactor = reactor
            return
        reactor.users -= 1
        if self.server is NULL:
            raise ConfigurationError((<bytes>err).decode(errors="replace"))
        vfu_server_free(self.server)
        self.server = NULL
        raise MemoryError("cannot add a controller to the reactor")

    cdef emu_endpoint *_enter(self) except NULL:
        """Of every call that lets go of the interpreter lock; _leave() when it is over."""
        if self.endpoint is NULL or self.closing:
            raise ValueError("the controller is closed")
        self._reactor._live()
        self.calls += 1
        return self.endpoint

    cdef inline void _leave(self) noexcept:
        self.calls -= 1

    @property
    def closed(self):
        return self.endpoint is NULL or self.closing

    @property
    def reactor(self):
        return self._reactor

    cdef int _give(self, int fd, int (*to)(emu_endpoint *, int) noexcept nogil) except -1:
        """The descriptor is the endpoint's from here on, whatever becomes of it. The errno."""
        cdef emu_endpoint *endpoint = NULL
        cdef int error
        try:
            endpoint = self._enter()
        except BaseException:
            os.close(fd)
            raise
        with nogil:
            error = to(endpoint, fd)
        self._leave()
        return error

    def attach(self, int fd):
        error = self._give(fd, emu_endpoint_attach)
        if error:
            raise OSError(error, f"cannot serve the client: {os.strerror(error)}")

    def listen(self, int fd):
        error = self._give(fd, emu_endpoint_listen)
        if error:
            raise OSError(error, f"cannot listen: {os.strerror(error)}")

    def stop_listening(self):
        cdef emu_endpoint *endpoint = self._enter()
        with nogil:
            emu_endpoint_listen(endpoint, -1)
        self._leave()

    def drop_client(self):
        cdef emu_endpoint *endpoint = self._enter()
        with nogil:
            emu_endpoint_drop(endpoint)
        self._leave()

    def serve_tcp(self, config, fds, *, double patience=3.0, fronts=()):
        cdef emu_endpoint *endpoint = NULL
        cdef emu_tcp_config c
        cdef int numbers[16]
        cdef int error
        cdef unsigned i, n = len(fds)
        cdef bytes text
        cdef uint64_t patience_ns = <uint64_t>(patience * 1e9)
        try:
            memset(&c, 0, sizeof(c))
            if not 1 <= n <= TCP_MAX_PORTS:
                raise ConfigurationError(f"{n} TCP ports: 1 to {TCP_MAX_PORTS} are allowed")
            text = config.nqn.encode()
            if not 1 <= len(text) < TCP_NQN_MAX:
                raise ConfigurationError(f"nqn {config.nqn!r} has {len(text)} bytes: 1 to {TCP_NQN_MAX - 1} are allowed")
            strncpy(c.nqn, text, TCP_NQN_MAX - 1)
            c.in_capsule, c.max_h2c = config.in_capsule, config.max_h2c
            c.r2t_bytes, c.c2h_bytes, c.cpda = config.r2t_bytes, config.c2h_bytes, config.alignment // 4 - 1
            c.no_header_digest, c.no_data_digest = not config.header_digest, not config.data_digest
            c.always_success = config.always_success
            if len(config.referrals) > TCP_MAX_REFERRALS:
                raise ConfigurationError(f"{len(config.referrals)} referrals: at most {TCP_MAX_REFERRALS} are allowed")
            c.n_referrals = len(config.referrals)
            for i, (address, port) in enumerate(config.referrals):
                text = address.encode()
                strncpy(c.referrals[i].traddr, text, 255)
                text = str(port).encode()
                strncpy(c.referrals[i].trsvcid, text, 31)
            c.tls = bool(fronts)
            for i, (address, port) in enumerate(fronts[:TCP_MAX_PORTS]):
                text = address.encode()
                strncpy(c.fronts[i].traddr, text, 255)
                text = str(port).encode()
                strncpy(c.fronts[i].trsvcid, text, 31)
            for i in range(n):
                numbers[i] = fds[i]
            endpoint = self._enter()
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        with nogil:
            error = emu_endpoint_tcp(endpoint, &c, patience_ns, numbers, n)
        self._leave()
        if error:
            raise OSError(error, f"cannot serve NVMe/TCP: {os.strerror(error)}")

    def drop_tcp(self):
        cdef emu_endpoint *endpoint = self._enter()
        with nogil:
            emu_endpoint_tcp_drop(endpoint)
        self._leave()

    def tcp_port(self, unsigned port, bint open):
        cdef emu_endpoint *endpoint = self._enter()
        cdef int error
        with nogil:
            error = emu_endpoint_tcp_port(endpoint, port, open)
        self._leave()
        if error:
            raise ConfigurationError(f"port {port}: the emulator serves no such TCP port")

    def tcp_ana(self, unsigned port, uint32_t group, uint8_t state):
        cdef emu_endpoint *endpoint = self._enter()
        cdef int error
        with nogil:
            error = emu_endpoint_tcp_ana(endpoint, port, group, state)
        self._leave()
        if error:
            raise ConfigurationError(f"port {port}, ANA group {group}, state {state}: one of them does not exist")

    def tcp_stats(self):
        cdef emu_endpoint *endpoint = self._enter()
        cdef emu_tcp_stats stats
        with nogil:
            emu_endpoint_tcp_stats(endpoint, &stats)
        self._leave()
        return stats

    def stats(self):
        cdef emu_endpoint *endpoint = self._enter()
        cdef Snapshot snapshot
        snapshot.server = self.server
        with nogil:
            emu_endpoint_call(endpoint, take_snapshot, &snapshot)
        self._leave()
        return {
            "clients": snapshot.stats.clients,
            "messages": snapshot.stats.messages,
            "refused": snapshot.stats.refused,
            "interrupts": snapshot.stats.interrupts,
            "connected": snapshot.fd >= 0,
            "negotiated": bool(snapshot.negotiated),
            "kicked": bool(snapshot.kicked),
            "mappings": snapshot.mappings,
            "vectors": snapshot.vectors,
            "last_drop": snapshot.reason.decode() if snapshot.reason is not NULL else None,
        }

    def close(self):
        if self.endpoint is NULL or self.closing or self._reactor.pid != getpid():
            return  # a fork()ed child leaves the parent's controller alone
        self.closing = True
        while self.calls:
            time.sleep(0.001)  # each is bounded; waiting ones check `closing`
        self._end()

    cdef void _end(self) noexcept:
        cdef emu_endpoint *endpoint = self.endpoint
        cdef vfu_server *server = self.server
        self.endpoint = NULL
        self.server = NULL
        with nogil:
            emu_reactor_remove(endpoint)
            vfu_server_free(server)
        self._reactor.users -= 1

    def __dealloc__(self):
        # Nothing of Python's is called: the interpreter may be at its end. No call is under way,
        # for it would refer to this object.
        if self.endpoint is not NULL and self._reactor is not None and self._reactor.pid == getpid():
            self._end()


include "faults.pxi"
