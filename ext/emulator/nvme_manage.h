/* What the parts of the emulated controller that change namespaces offer each other. Included by nvme_ctrl.h. */
#ifndef NVME_ASYNC_EMULATOR_NVME_MANAGE_H
#define NVME_ASYNC_EMULATOR_NVME_MANAGE_H

/* nvme_ops.c: operations that take their time */
void op_start(struct op *op, uint64_t duration);
bool op_active(const struct op *op);
unsigned op_percent(const struct op *op, uint64_t now);
unsigned ops_tick(struct emu_ctrl *ctrl, uint64_t now);
uint64_t ops_deadline(const struct emu_ctrl *ctrl);

/* nvme_format.c: LBA formats and Format NVM */
const char *formats_objection(struct emu_config *config);
int format_find(const struct emu_config *config, const struct emu_ns_config *ns);
const char *format_objection(const struct emu_config *config, unsigned index, uint8_t dps);
int format_apply(struct emu_ctrl *ctrl, struct ns *ns, unsigned index, bool extended, uint8_t dps);
uint16_t admin_format(struct emu_ctrl *ctrl, const struct nvme_sqe *sqe);
void format_done(struct emu_ctrl *ctrl);

/* nvme_meta.c: blocks with metadata */
uint16_t meta_execute(struct emu_ctrl *ctrl, struct ns *ns, const struct nvme_sqe *sqe, uint64_t lba, uint32_t blocks);
uint16_t meta_zero(struct ns *ns, uint64_t lba, uint64_t blocks);

#endif
