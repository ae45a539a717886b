/* Functions that the features beyond a plain drive's offer each other. Included by nvme_ctrl.h. */
#ifndef NVME_ASYNC_EMULATOR_NVME_MANAGE_H
#define NVME_ASYNC_EMULATOR_NVME_MANAGE_H

static inline void put16(uint8_t *page, unsigned at, uint16_t value)
{
    memcpy(page + at, &value, 2);
}

static inline void put32(uint8_t *page, unsigned at, uint32_t value)
{
    memcpy(page + at, &value, 4);
}

static inline void put64(uint8_t *page, unsigned at, uint64_t value)
{
    memcpy(page + at, &value, 8);
}

/* ASCII fields are left-justified and padded with spaces. */
static inline void put_text(uint8_t *page, unsigned at, unsigned nbytes, const char *text)
{
    memset(page + at, ' ', nbytes);
    memcpy(page + at, text, strnlen(text, nbytes));
}

/* nvme_ops.c: long operations */
void op_start(struct op *op, uint64_t duration);
bool op_active(const struct op *op);
uint32_t op_parts(const struct op *op, uint64_t now, uint32_t of);
unsigned ops_tick(struct emu_ctrl *ctrl, uint64_t now);
uint64_t ops_deadline(const struct emu_ctrl *ctrl);

/* nvme_format.c: LBA formats and Format NVM */
const char *formats_objection(struct emu_config *config);
int format_find(const struct emu_config *config, const struct emu_ns_config *ns);
const char *format_objection(const struct emu_config *config, unsigned index, uint8_t dps);
int format_apply(struct emu_ctrl *ctrl, struct ns *ns, unsigned index, bool extended, uint8_t dps);
uint16_t admin_format(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
void format_done(struct emu_ctrl *ctrl);
uint16_t ns_erase(struct ns *ns);

/* nvme_meta.c: blocks with metadata */
uint16_t meta_execute(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t lba, uint32_t blocks);
uint16_t meta_protect_zeroes(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t lba,
                             uint64_t blocks);
uint16_t meta_zero(struct ns *ns, uint64_t lba, uint64_t blocks);
/* A source range of a Copy: where from, and what its protection information is to be. */
struct copy_part {
    struct ns *source;
    uint64_t from, to;
    uint32_t blocks;
    struct nvme_sqe expected; /* the tags, as a Read would have them */
};
void meta_tags_after(const struct ns *ns, struct nvme_sqe *sqe, uint32_t blocks);
uint16_t meta_copy(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, const struct copy_part *part);

/* nvme_copy.c */
uint16_t io_copy(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint32_t *result);

/* nvme_fused.c: the next command of a queue that has, or begins, a fused operation; and the end of
 * what was fetched */
void fused_next(struct emu_ctrl *ctrl, struct sq *sq, struct nvme_sqe *sqe, bool faulty);
void fused_end(struct emu_ctrl *ctrl, struct sq *sq);

/* nvme_extra.c: which of the following are offered, and what they add to admin commands, Identify
 * and log pages */
const char *extras_objection(const struct emu_config *config);
void extras_init(struct emu_ctrl *ctrl);
void extras_free(struct emu_ctrl *ctrl);
void extras_reset(struct emu_ctrl *ctrl);
uint16_t extras_admin(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
uint16_t extras_forbid(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, bool admin);
void extras_identify(const struct emu_ctrl *ctrl, uint8_t *p);
uint32_t extras_events(const struct emu_ctrl *ctrl);
bool extras_log_offered(const struct emu_ctrl *ctrl, uint8_t lid);
void extras_effects(const struct emu_ctrl *ctrl, uint8_t *p);
/* A page of the log, allocated (the caller frees it), of *nbytes bytes; or a status. NULL without
 * one: there is no such page. */
uint8_t *extras_log(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status);

/* nvme_manage.c */
struct ns *ns_allocated(const struct emu_ctrl *ctrl, uint32_t nsid);
void ns_delete(struct emu_ctrl *ctrl, uint32_t nsid);
uint16_t admin_ns_management(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
uint16_t admin_ns_attachment(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);

/* nvme_capacity.c */
void capacity_init(struct emu_ctrl *ctrl);
uint64_t capacity_left(const struct emu_ctrl *ctrl);
bool capacity_group_exists(const struct emu_ctrl *ctrl, uint32_t group);
uint16_t capacity_choose(const struct emu_ctrl *ctrl, uint16_t set, uint16_t group, uint64_t nbytes, uint16_t *status);
uint16_t capacity_group_of(const struct emu_ctrl *ctrl, const struct ns *ns);
uint16_t admin_capacity(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
void capacity_identify(const struct emu_ctrl *ctrl, uint8_t *p, uint32_t *ctratt);
void capacity_identify_sets(const struct emu_ctrl *ctrl, uint16_t from, uint8_t *p);
void capacity_identify_groups(const struct emu_ctrl *ctrl, uint16_t from, uint8_t *p);
void capacity_endurance(const struct emu_ctrl *ctrl, uint32_t group, uint8_t *p);

/* nvme_virtual.c */
void virtual_reset(struct emu_ctrl *ctrl);
uint16_t admin_virtualization(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
void virtual_identify_primary(const struct emu_ctrl *ctrl, uint8_t *p);
void virtual_identify_secondary(const struct emu_ctrl *ctrl, uint16_t from, uint8_t *p);

/* nvme_selftest.c */
uint16_t admin_self_test(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
void self_test_end(struct emu_ctrl *ctrl, uint8_t result);
void self_test_page(const struct emu_ctrl *ctrl, uint8_t *p);

/* nvme_sanitize.c */
uint16_t admin_sanitize(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
void sanitize_done(struct emu_ctrl *ctrl);
void sanitize_page(const struct emu_ctrl *ctrl, uint8_t *p);

/* nvme_firmware.c */
void firmware_init(struct emu_ctrl *ctrl);
void firmware_reset(struct emu_ctrl *ctrl);
void firmware_page(const struct emu_ctrl *ctrl, uint8_t *p);
uint16_t admin_firmware_download(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t admin_firmware_commit(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);

/* nvme_telemetry.c */
uint8_t *telemetry_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes);
void telemetry_fatal(struct emu_ctrl *ctrl);

/* nvme_persistent.c */
void persistent_add(struct emu_ctrl *ctrl, uint8_t type, const void *data, size_t nbytes);
uint8_t *persistent_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status);
uint64_t timestamp(const struct emu_ctrl *ctrl);
unsigned smart_page(const struct emu_ctrl *ctrl, uint8_t *p);

/* nvme_ana.c */
uint16_t ana_status(const struct emu_ctrl *ctrl, const struct ns *ns);
uint8_t *ana_page(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes);
int ana_set(struct emu_ctrl *ctrl, uint32_t group, uint8_t state);

/* nvme_fdp.c */
void fdp_enable(struct emu_ctrl *ctrl, bool enabled);
uint16_t fdp_check_handles(const struct emu_ctrl *ctrl, unsigned n, const uint16_t *list);
void fdp_assign_handles(const struct emu_ctrl *ctrl, struct ns *ns, unsigned n, const uint16_t *list);
uint8_t fdp_event_bit(uint8_t type);
void fdp_write(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t nbytes);
uint8_t *fdp_page(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status);
uint16_t fdp_set_mode(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t fdp_get_mode(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
uint16_t fdp_set_events(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t fdp_get_events(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);
uint16_t io_management_receive(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe);
uint16_t io_management_send(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe);

/* nvme_directives.c */
void directives_reset(struct emu_ctrl *ctrl);
uint16_t directive_check(struct emu_ctrl *ctrl, const struct ns *ns, const struct nvme_sqe *sqe);
void streams_write(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe);
uint16_t admin_directive_send(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t admin_directive_receive(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint32_t *result);

/* nvme_hmb.c */
void hmb_free(struct hmb *hmb);
void hmb_reset(struct emu_ctrl *ctrl);
void hmb_use(struct emu_ctrl *ctrl);
void hmb_use_all(struct emu_ctrl *ctrl);
uint16_t hmb_set(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t hmb_get(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, bool current, uint32_t *result);
void hmb_identify(const struct emu_extras *extras, uint8_t *p);

/* nvme_power.c */
const char *power_objection(const struct emu_extras *extras);
void power_reset(struct emu_ctrl *ctrl);
void power_used(struct emu_ctrl *ctrl, bool io);
uint64_t power_deadline(const struct emu_ctrl *ctrl);
unsigned power_tick(struct emu_ctrl *ctrl, uint64_t now);
uint16_t power_set_state(struct emu_ctrl *ctrl, uint32_t value);
uint32_t power_get_state(const struct emu_ctrl *ctrl);
uint16_t power_set_autonomous(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t power_get_autonomous(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, bool current, uint32_t *result);
void power_identify(const struct emu_extras *extras, uint8_t *p, uint32_t *ctratt);

/* nvme_sgl.c */
#define SGL_SINK 65536u
uint16_t sgl_map(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host, unsigned *n);
uint16_t sgl_map_metadata(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host,
                          unsigned first, unsigned *n);
unsigned sgl_ranges(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, uint64_t nbytes, bool to_host,
                    struct emu_dma_range *ranges, unsigned max);
uint16_t sgl_objection(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint32_t sgl_support(const struct emu_config *config);

/* nvme_regions.c */
const char *region_objection(const struct emu_extras *extras);
int region_init(struct emu_ctrl *ctrl);
void region_free(struct emu_ctrl *ctrl);
void region_reset(struct emu_ctrl *ctrl);
bool region_window(const struct emu_ctrl *ctrl, uint64_t iova, struct emu_window *window);
uint64_t region_cap(const struct emu_ctrl *ctrl);
uint32_t region_read(struct emu_ctrl *ctrl, uint32_t offset);
void region_write(struct emu_ctrl *ctrl, uint32_t offset, uint32_t value);

/* nvme_lockdown.c */
uint16_t admin_lockdown(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint16_t lockdown_status(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint8_t *lockdown_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status);

/* nvme_boot.c */
const char *boot_objection(const struct emu_extras *extras);
bool boot_init(struct emu_ctrl *ctrl);
void boot_free(struct emu_ctrl *ctrl);
uint32_t boot_info(const struct emu_ctrl *ctrl);
void boot_select(struct emu_ctrl *ctrl, uint32_t value);
uint16_t boot_commit(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, const uint8_t *image, uint32_t nbytes);
uint16_t boot_set_protection(struct emu_ctrl *ctrl, uint32_t value);
uint32_t boot_get_protection(const struct emu_ctrl *ctrl);
uint8_t *boot_page(const struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes);

/* nvme_lba_status.c */
uint16_t admin_lba_status(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
uint8_t *lba_status_page(const struct emu_ctrl *ctrl, size_t *nbytes);

/* nvme_zns.c */
int zones_new(struct emu_ctrl *ctrl, struct ns *ns, char *err);
void zones_reset(struct ns *ns);
uint16_t zones_write(struct emu_ctrl *ctrl, struct ns *ns, uint64_t *lba, uint32_t blocks, bool append);
uint16_t zones_read(const struct ns *ns, uint64_t lba, uint32_t blocks);
uint16_t zones_send(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe);
uint16_t zones_receive(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe);
void zones_identify(const struct emu_ctrl *ctrl, const struct ns *ns, uint8_t *p);
int zones_change(struct emu_ctrl *ctrl, uint32_t nsid, uint64_t index, uint8_t state);
uint8_t *zones_changed_page(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe, size_t *nbytes, uint16_t *status);

/* nvme_kv.c */
int kv_new(struct ns *ns);
void kv_clear(struct ns *ns);
void kv_free(struct ns *ns);
uint16_t io_key_value(struct emu_ctrl *ctrl, struct sq *sq, struct ns *ns, const struct nvme_sqe *sqe,
                      uint32_t *result);
void kv_identify(const struct ns *ns, uint8_t *p);

/* nvme_security.c */
uint16_t admin_security(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);

/* nvme_outage.c: what a power loss leaves */
struct outage {
    bool tear; /* some of what was not on the medium is there; false: none of it */
    uint64_t seed;
};
bool outage_keeps(const struct outage *outage, uint32_t nsid, uint64_t lba, unsigned attempt);
void outage_strike(struct emu_ctrl *ctrl, const struct outage *outage);
void held_each_waiting(struct emu_ctrl *ctrl, void (*each)(struct emu_ctrl *, const struct nvme_sqe *, void *),
                       void *arg);

/* nvme_cache.c: a volatile write cache over RAM */
int undo_new(struct media *media);
void undo_free(struct media *media);
void undo_note(struct media *media, uint64_t offset, uint64_t nbytes);
void undo_commit(struct media *media, uint64_t offset, uint64_t nbytes);
void undo_flush(struct media *media);
void undo_restore(struct media *media, const struct outage *outage, uint32_t nsid, unsigned lbads);

#endif
