#include "pi/pi.h"

#include "pi/crc.h"

static const uint8_t GUARD_BYTES[] = {2, 4, 8}, SPACE_BYTES[] = {4, 10, 6};

unsigned pi_nbytes(uint8_t pif)
{
    return GUARD_BYTES[pif] + 2u + SPACE_BYTES[pif];
}

unsigned pi_space_bits(uint8_t pif)
{
    return SPACE_BYTES[pif] * 8u;
}

static pi_space ones(unsigned bits)
{
    return ((pi_space)1 << bits) - 1;
}

pi_space pi_space_after(const struct pi_format *format, pi_space space, uint64_t n)
{
    pi_space reference = ones(pi_space_bits(format->pif) - format->sts);
    if (format->type == 3)
        return space;
    return (space & ~reference) | ((space + n) & reference);
}

/* All fields are big-endian. */
static void put(uint8_t *at, pi_space value, unsigned nbytes)
{
    while (nbytes) {
        at[--nbytes] = (uint8_t)value;
        value >>= 8;
    }
}

static pi_space get(const uint8_t *at, unsigned nbytes)
{
    pi_space value = 0;
    for (unsigned i = 0; i < nbytes; i++)
        value = value << 8 | at[i];
    return value;
}

/* Of the data, and of the metadata that come before the protection information. */
static uint64_t guard(const struct pi_format *format, const uint8_t *data, const uint8_t *meta)
{
    size_t before = format->first ? 0 : format->metadata - pi_nbytes(format->pif);
    switch (format->pif) {
    case 0:
        return crc16_t10(crc16_t10(CRC16_T10_INIT, data, format->block_size), meta, before);
    case 1:
        return crc32c(crc32c(CRC32C_INIT, data, format->block_size), meta, before);
    default:
        return crc64_nvme(crc64_nvme(CRC64_NVME_INIT, data, format->block_size), meta, before);
    }
}

static uint8_t *tuple(const struct pi_format *format, uint8_t *meta)
{
    return format->first ? meta : meta + format->metadata - pi_nbytes(format->pif);
}

void pi_generate(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags)
{
    unsigned guard_bytes = GUARD_BYTES[format->pif], space_bytes = SPACE_BYTES[format->pif];
    for (size_t i = 0; i < blocks->n; i++) {
        uint8_t *meta = blocks->meta + i * blocks->meta_stride, *at = tuple(format, meta);
        put(at, guard(format, blocks->data + i * blocks->data_stride, meta), guard_bytes);
        put(at + guard_bytes, tags->app, 2);
        put(at + guard_bytes + 2, pi_space_after(format, tags->space, i), space_bytes);
    }
}

struct pi_failure pi_check(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags,
                           unsigned checks)
{
    unsigned guard_bytes = GUARD_BYTES[format->pif], space_bytes = SPACE_BYTES[format->pif];
    unsigned reference_bits = space_bytes * 8 - format->sts;
    pi_space reference = ones(reference_bits);
    for (size_t i = 0; i < blocks->n; i++) {
        uint8_t *meta = blocks->meta + i * blocks->meta_stride, *at = tuple(format, meta);
        uint16_t app = (uint16_t)get(at + guard_bytes, 2);
        pi_space space = get(at + guard_bytes + 2, space_bytes), wanted = pi_space_after(format, tags->space, i);
        /* A block whose tags disable checking is not checked (5.3.3): it was deallocated, or
         * written with such tags. */
        if (app == 0xffff && (format->type != 3 || (space & reference) == reference))
            continue;
        if (checks & PI_CHECK_GUARD) {
            uint64_t found = (uint64_t)get(at, guard_bytes),
                     expected = guard(format, blocks->data + i * blocks->data_stride, meta);
            if (found != expected)
                return (struct pi_failure){i, PI_CHECK_GUARD, found, expected};
        }
        if (checks & PI_CHECK_APP && (app & tags->app_mask) != (tags->app & tags->app_mask))
            return (struct pi_failure){i, PI_CHECK_APP, app, tags->app};
        if (checks & PI_CHECK_REF && (space & reference) != (wanted & reference))
            return (struct pi_failure){i, PI_CHECK_REF, space & reference, wanted & reference};
        if (checks & PI_CHECK_STORAGE && space >> reference_bits != wanted >> reference_bits)
            return (struct pi_failure){i, PI_CHECK_STORAGE, space >> reference_bits, wanted >> reference_bits};
    }
    return (struct pi_failure){blocks->n, 0, 0, 0};
}
