# The native half of nvme_async.emulator.faults: faults.h, function by function. Included by
# _emulator.pyx.

cdef extern from "emulator/faults.h" nogil:
    enum emu_fault_queue:
        EMU_FAULT_ANY_QUEUE
        EMU_FAULT_ADMIN_QUEUE
        EMU_FAULT_IO_QUEUES
    enum:
        EMU_FAULT_DELAY
        EMU_FAULT_DELAY_POST
        EMU_FAULT_DROP
        EMU_FAULT_DISCARD
        EMU_FAULT_FAIL
        EMU_FAULT_SQE
        EMU_FAULT_CQE
        EMU_FAULT_WRONG_PHASE
        EMU_FAULT_DUPLICATE
        EMU_FAULT_REORDER
        EMU_FAULT_PAYLOAD
        EMU_FAULT_LOSE_INTERRUPT
        EMU_FAULT_SPURIOUS_INTERRUPT
        EMU_FAULT_FATAL
        EMU_FAULT_REMOVE
        EMU_PAYLOAD_MAX
    struct emu_fault:
        emu_fault_queue queue
        int32_t qid
        uint8_t value[64]
        uint8_t mask[64]
        uint32_t skip
        uint32_t count
        uint32_t actions
        uint64_t delay_ns
        uint32_t distance
        uint16_t status
        uint8_t sqe[64]
        uint8_t sqe_mask[64]
        uint8_t cqe[16]
        uint8_t cqe_mask[16]
        const void *payload
        size_t payload_len
    int emu_fault_add(emu_ctrl *ctrl, const emu_fault *fault)
    int emu_fault_remove(emu_ctrl *ctrl, int id)
    void emu_fault_clear(emu_ctrl *ctrl)
    void emu_fault_switch(emu_ctrl *ctrl, bint on)
    int64_t emu_fault_hits(emu_ctrl *ctrl, int id, uint8_t *sqe)
    int emu_fault_wait(emu_ctrl *ctrl, int id, uint64_t hits, uint64_t timeout_ns)
    int emu_fault_release(emu_ctrl *ctrl, uint64_t timeout_ns)
    int emu_fault_enable_delay(emu_ctrl *ctrl, uint64_t ready_ns, uint64_t disabled_ns)
    int emu_fault_mqes(emu_ctrl *ctrl, int32_t mqes)
    int emu_fault_fatal(emu_ctrl *ctrl, uint64_t timeout_ns)
    int emu_fault_removed(emu_ctrl *ctrl, bint removed, uint64_t timeout_ns)
    int emu_fault_interrupt(emu_ctrl *ctrl, unsigned vector, uint64_t timeout_ns)
    int emu_fault_temperature(emu_ctrl *ctrl, uint16_t kelvin, uint64_t timeout_ns)
    int emu_fault_power_loss(emu_ctrl *ctrl, bint tear, uint64_t seed, uint64_t timeout_ns)
    int emu_use_host_memory(emu_ctrl *ctrl, uint64_t timeout_ns)
    int emu_fault_sanitize(emu_ctrl *ctrl, uint64_t timeout_ns)
    int emu_zone_state(emu_ctrl *ctrl, uint32_t nsid, uint64_t index, uint8_t state, uint64_t timeout_ns)
    int emu_ana_state(emu_ctrl *ctrl, uint32_t group, uint8_t state, uint64_t timeout_ns)
    int emu_ns_add(emu_ctrl *ctrl, uint32_t nsid, const emu_ns_config *config, bint notice, char *err, uint64_t timeout_ns)
    int emu_ns_remove(emu_ctrl *ctrl, uint32_t nsid, bint notice, uint64_t timeout_ns)
    int emu_ns_resize(emu_ctrl *ctrl, uint32_t nsid, uint64_t nbytes, bint notice, uint64_t timeout_ns)
    int emu_ns_identity(emu_ctrl *ctrl, uint32_t nsid, const uint8_t *nguid, const uint8_t *eui64, const uint8_t *uuid,
                        bint notice, uint64_t timeout_ns)
    struct emu_dma_range:
        uint64_t iova
        uint64_t nbytes
        bint write
    struct emu_outstanding_command "emu_outstanding":
        uint16_t sqid
        uint16_t cid
        uint8_t opcode
        bint executed
        uint64_t deadline_ns
        uint8_t sqe[64]
        uint32_t n_ranges
        uint32_t first_range
    int emu_get_outstanding "emu_outstanding"(
        emu_ctrl *ctrl, emu_outstanding_command *out, uint32_t limit, emu_dma_range *ranges, uint32_t max_ranges,
        uint32_t *n_ranges, uint64_t timeout_ns)
    struct emu_doorbell:
        uint64_t sequence
        uint64_t time_ns
        uint16_t qid
        bint is_cq
        uint32_t old
        uint32_t new_value "new"
    void emu_trace_doorbells(emu_ctrl *ctrl, bint on)
    uint32_t emu_trace_read(emu_ctrl *ctrl, uint64_t start, emu_doorbell *out, uint32_t limit)
    struct emu_counters_struct "emu_counters":
        uint64_t enables
        uint64_t disables
        uint64_t resets
        uint64_t shutdowns
        uint64_t fatals
        uint64_t doorbells
        uint64_t doorbell_writes
        uint64_t invalid_doorbells
        uint64_t interrupts
        uint64_t interrupts_lost
        uint64_t errors
        uint64_t commands_read
        uint64_t commands_written
        uint64_t bytes_read
        uint64_t bytes_written
        uint64_t queues_created
        uint64_t queues_deleted
        uint64_t sgl_commands
        uint64_t power_state
        uint64_t power_transitions
        uint64_t power_wakeups
        uint64_t host_memory_pages
        uint64_t host_memory_writes
        uint64_t host_memory_damaged
        uint64_t admin[256]
        uint64_t io[256]
    void emu_get_counters "emu_counters"(const emu_ctrl *ctrl, emu_counters_struct *out)
    uint32_t emu_csts(const emu_ctrl *ctrl)


FAULT_ACTIONS = {
    "delay": EMU_FAULT_DELAY,
    "delay_post": EMU_FAULT_DELAY_POST,
    "drop": EMU_FAULT_DROP,
    "discard": EMU_FAULT_DISCARD,
    "fail": EMU_FAULT_FAIL,
    "sqe": EMU_FAULT_SQE,
    "cqe": EMU_FAULT_CQE,
    "wrong_phase": EMU_FAULT_WRONG_PHASE,
    "duplicate": EMU_FAULT_DUPLICATE,
    "reorder": EMU_FAULT_REORDER,
    "payload": EMU_FAULT_PAYLOAD,
    "lose_interrupt": EMU_FAULT_LOSE_INTERRUPT,
    "spurious_interrupt": EMU_FAULT_SPURIOUS_INTERRUPT,
    "fatal": EMU_FAULT_FATAL,
    "remove": EMU_FAULT_REMOVE,
}
FAULT_PAYLOAD_MAX = EMU_PAYLOAD_MAX

cdef enum:
    OUTSTANDING_MAX = 8192
    RANGES_MAX = 65536
    TRACE_MAX = 4096


cdef object fault_check(int result, str what):
    """The result, or the OSError that a negative one stands for (TimeoutError among them)."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


cdef class Faults:
    cdef Controller controller
    cdef uint64_t timeout_ns  # of requests that the reactor executes

    def __init__(self, Controller controller not None, double timeout=5.0):
        self.controller = controller
        self.timeout_ns = <uint64_t>(timeout * 1e9)

    cdef emu_ctrl *_enter(self) except NULL:
        self.controller._enter()
        return self.controller.server.ctrl

    cdef inline void _leave(self) noexcept:
        self.controller._leave()

    def add(self, queue, int qid, bytes value, bytes mask, uint32_t skip, uint32_t count, uint32_t actions,
            uint64_t delay_ns, uint32_t distance, uint16_t status, bytes sqe, bytes sqe_mask, bytes cqe,
            bytes cqe_mask, bytes payload):
        cdef emu_fault fault
        cdef int result
        for data, size in ((value, 64), (mask, 64), (sqe, 64), (sqe_mask, 64), (cqe, 16), (cqe_mask, 16)):
            if len(data) != size:
                raise ValueError(f"a mask or value of {len(data)} bytes: {size} are needed")
        memset(&fault, 0, sizeof(fault))
        fault.queue = {"any": EMU_FAULT_ANY_QUEUE, "admin": EMU_FAULT_ADMIN_QUEUE, "io": EMU_FAULT_IO_QUEUES}[queue]
        fault.qid = qid
        memcpy(fault.value, <const char *>value, 64)
        memcpy(fault.mask, <const char *>mask, 64)
        fault.skip, fault.count, fault.actions = skip, count, actions
        fault.delay_ns, fault.distance, fault.status = delay_ns, distance, status
        memcpy(fault.sqe, <const char *>sqe, 64)
        memcpy(fault.sqe_mask, <const char *>sqe_mask, 64)
        memcpy(fault.cqe, <const char *>cqe, 16)
        memcpy(fault.cqe_mask, <const char *>cqe_mask, 16)
        fault.payload = <const char *>payload
        fault.payload_len = len(payload)
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            result = emu_fault_add(ctrl, &fault)
        self._leave()
        return fault_check(result, "cannot add the fault")

    def remove(self, int rule):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_remove(ctrl, rule)
        self._leave()
        fault_check(result, f"fault {rule}")

    def clear(self):
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            emu_fault_clear(ctrl)
        self._leave()

    def switch(self, bint on):
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            emu_fault_switch(ctrl, on)
        self._leave()

    def hits(self, int rule):
        cdef uint8_t sqe[64]
        cdef int64_t result
        cdef emu_ctrl *ctrl = self._enter()
        memset(sqe, 0, 64)
        with nogil:
            result = emu_fault_hits(ctrl, rule, sqe)
        self._leave()
        if result < 0:
            fault_check(<int>result, f"fault {rule}")
        return result, (<char *>sqe)[:64]

    def wait(self, int rule, uint64_t hits, double timeout):
        """In slices, so that close() needn't wait for the whole of it."""
        cdef emu_ctrl *ctrl
        cdef int result
        end = time.monotonic() + timeout
        while True:
            ctrl = self._enter()
            with nogil:
                result = emu_fault_wait(ctrl, rule, hits, 20000000)
            self._leave()
            if result != -errno.ETIMEDOUT or time.monotonic() >= end:
                fault_check(result, f"fault {rule}: {hits} hits in {timeout} s")
                return

    def release(self):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_release(ctrl, self.timeout_ns)
        self._leave()
        return fault_check(result, "release")

    def enable_delay(self, uint64_t ready_ns, uint64_t disabled_ns):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_enable_delay(ctrl, ready_ns, disabled_ns)
        self._leave()
        fault_check(result, "enable delay")

    def mqes(self, int32_t mqes):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_mqes(ctrl, mqes)
        self._leave()
        fault_check(result, f"MQES {mqes}")

    def fatal(self):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_fatal(ctrl, self.timeout_ns)
        self._leave()
        fault_check(result, "CSTS.CFS")

    def removed(self, bint removed):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_removed(ctrl, removed, self.timeout_ns)
        self._leave()
        fault_check(result, "removal")

    def interrupt(self, unsigned vector):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_interrupt(ctrl, vector, self.timeout_ns)
        self._leave()
        fault_check(result, f"interrupt {vector}")

    def temperature(self, uint16_t kelvin):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_temperature(ctrl, kelvin, self.timeout_ns)
        self._leave()
        fault_check(result, f"temperature {kelvin}")

    def power_loss(self, bint tear, uint64_t seed):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_power_loss(ctrl, tear, seed, self.timeout_ns)
        self._leave()
        fault_check(result, "power loss")

    def use_host_memory(self):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_use_host_memory(ctrl, self.timeout_ns)
        self._leave()
        fault_check(result, "the host memory buffer")

    def sanitize_fails(self):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_fault_sanitize(ctrl, self.timeout_ns)
        self._leave()
        fault_check(result, "sanitize")

    def ana_state(self, uint32_t group, uint8_t state):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_ana_state(ctrl, group, state, self.timeout_ns)
        self._leave()
        fault_check(result, f"ANA group {group}, state {state}")

    def zone_state(self, uint32_t nsid, uint64_t index, uint8_t state):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_zone_state(ctrl, nsid, index, state, self.timeout_ns)
        self._leave()
        fault_check(result, f"namespace {nsid}, zone {index}, state {state}")

    def namespace_add(self, uint32_t nsid, medium, bint notice):
        cdef emu_ns_config config
        cdef char err[256]
        cdef int result
        cdef list keep = []
        fill_namespace(&config, medium, keep)
        err[0] = 0
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            result = emu_ns_add(ctrl, nsid, &config, notice, err, self.timeout_ns)
        self._leave()
        fault_check(result, f"namespace {nsid}: {(<bytes>err).decode(errors='replace') or 'not added'}")

    def namespace_remove(self, uint32_t nsid, bint notice):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_ns_remove(ctrl, nsid, notice, self.timeout_ns)
        self._leave()
        fault_check(result, f"namespace {nsid}")

    def namespace_resize(self, uint32_t nsid, uint64_t nbytes, bint notice):
        cdef emu_ctrl *ctrl = self._enter()
        cdef int result
        with nogil:
            result = emu_ns_resize(ctrl, nsid, nbytes, notice, self.timeout_ns)
        self._leave()
        fault_check(result, f"namespace {nsid} to {nbytes} bytes")

    def namespace_identity(self, uint32_t nsid, bytes nguid, bytes eui64, bytes uuid, bint notice):
        cdef emu_ctrl *ctrl
        cdef int result
        cdef const uint8_t *n = NULL
        cdef const uint8_t *e = NULL
        cdef const uint8_t *u = NULL
        for name, value, size in (("nguid", nguid, 16), ("eui64", eui64, 8), ("uuid", uuid, 16)):
            if value is not None and len(value) != size:
                raise ValueError(f"{name} of {len(value)} bytes: {size} are needed")
        if nguid is not None:
            n = <const uint8_t *><const char *>nguid
        if eui64 is not None:
            e = <const uint8_t *><const char *>eui64
        if uuid is not None:
            u = <const uint8_t *><const char *>uuid
        ctrl = self._enter()
        with nogil:
            result = emu_ns_identity(ctrl, nsid, n, e, u, notice, self.timeout_ns)
        self._leave()
        fault_check(result, f"namespace {nsid}")

    def outstanding(self):
        cdef emu_outstanding_command *commands = NULL
        cdef emu_dma_range *ranges = NULL
        cdef uint32_t n_ranges = 0
        cdef int result, i
        cdef uint32_t j
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            commands = <emu_outstanding_command *>calloc(OUTSTANDING_MAX, sizeof(commands[0]))
            ranges = <emu_dma_range *>calloc(RANGES_MAX, sizeof(ranges[0]))
            result = -12
            if commands is not NULL and ranges is not NULL:
                result = emu_get_outstanding(ctrl, commands, OUTSTANDING_MAX, ranges, RANGES_MAX, &n_ranges, self.timeout_ns)
        self._leave()
        try:
            fault_check(result, "outstanding commands")
            return [
                (
                    commands[i].sqid, commands[i].cid, commands[i].opcode, bool(commands[i].executed),
                    commands[i].deadline_ns, (<char *>commands[i].sqe)[:64],
                    [
                        (ranges[j].iova, ranges[j].nbytes, bool(ranges[j].write))
                        for j in range(commands[i].first_range, commands[i].first_range + commands[i].n_ranges)
                    ],
                )
                for i in range(result)
            ]
        finally:
            free(commands)
            free(ranges)

    def trace(self, bint on):
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            emu_trace_doorbells(ctrl, on)
        self._leave()

    def doorbells(self, uint64_t start):
        cdef emu_doorbell *entries = NULL
        cdef uint32_t n = 0, i
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            entries = <emu_doorbell *>calloc(TRACE_MAX, sizeof(entries[0]))
            if entries is not NULL:
                n = emu_trace_read(ctrl, start, entries, TRACE_MAX)
        self._leave()
        if entries is NULL:
            raise MemoryError("no memory for the doorbell trace")
        try:
            return [
                (entries[i].sequence, entries[i].time_ns, entries[i].qid, bool(entries[i].is_cq), entries[i].old,
                 entries[i].new_value)
                for i in range(n)
            ]
        finally:
            free(entries)

    def counters(self):
        cdef emu_counters_struct c
        cdef int i
        cdef emu_ctrl *ctrl = self._enter()
        with nogil:
            emu_get_counters(ctrl, &c)
        self._leave()
        return {
            "enables": c.enables, "disables": c.disables, "resets": c.resets, "shutdowns": c.shutdowns,
            "fatals": c.fatals, "doorbells": c.doorbells, "doorbell_writes": c.doorbell_writes,
            "invalid_doorbells": c.invalid_doorbells, "interrupts": c.interrupts,
            "interrupts_lost": c.interrupts_lost, "errors": c.errors, "commands_read": c.commands_read,
            "commands_written": c.commands_written, "bytes_read": c.bytes_read, "bytes_written": c.bytes_written,
            "queues_created": c.queues_created, "queues_deleted": c.queues_deleted, "sgl_commands": c.sgl_commands,
            "power_state": c.power_state, "power_transitions": c.power_transitions,
            "power_wakeups": c.power_wakeups,
            "host_memory_pages": c.host_memory_pages, "host_memory_writes": c.host_memory_writes,
            "host_memory_damaged": c.host_memory_damaged,
            "admin": {i: c.admin[i] for i in range(256) if c.admin[i]},
            "io": {i: c.io[i] for i in range(256) if c.io[i]},
        }

    def csts(self):
        cdef emu_ctrl *ctrl = self._enter()
        cdef uint32_t value
        with nogil:
            value = emu_csts(ctrl)
        self._leave()
        return value
