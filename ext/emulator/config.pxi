# EmulatorConfig, whose attributes are plain, as the structs that the C core takes.

cdef int fill_namespace(emu_ns_config *to, medium, list keep) except -1:
    cdef bytes text
    memset(to, 0, sizeof(emu_ns_config))
    to.nbytes = medium.nbytes
    to.block_size = medium.block_size
    to.metadata = medium.metadata
    to.pif = medium.pif
    to.dps = medium.dps
    to.extended = medium.extended
    if medium.kind == "ram":
        to.medium = EMU_MEDIUM_RAM
    elif medium.kind == "null":
        to.medium = EMU_MEDIUM_NULL
    else:
        text = os.fsencode(medium.path)
        keep.append(text)
        to.medium = EMU_MEDIUM_FILE
        to.path = text
    return 0


cdef emu_medium medium_of(str kind):
    return {"ram": EMU_MEDIUM_RAM, "null": EMU_MEDIUM_NULL}.get(kind, EMU_MEDIUM_FILE)


cdef dict PMR_HEALTH = {"normal": 0, "restore_error": 1, "read_only": 2, "unreliable": 3}
cdef tuple CMB_USES = ("submission", "completion", "lists", "read", "write")  # CMBSZ bits 0 to 4
cdef dict SGL_BITS = {"byte": EMU_SGL_BYTE, "dword": EMU_SGL_DWORD, "bit_bucket": EMU_SGL_BIT_BUCKET,
                      "metadata": EMU_SGL_METADATA, "longer": EMU_SGL_LONGER}


cdef int fill_extras(emu_extras *to, config, list keep) except -1:
    extras = config.extras
    to.capacity = extras.capacity
    to.medium = medium_of(config.medium)
    if config.path:
        text = os.fsencode(config.path)
        keep.append(text)
        to.path = text
    to.self_test = extras.self_test > 0
    to.self_test_ns = <uint64_t>(extras.self_test * 1e9)
    to.sanitize = extras.sanitize > 0
    to.sanitize_ns = <uint64_t>(extras.sanitize * 1e9)
    to.lba_status = extras.lba_status
    to.endurance = extras.endurance
    to.telemetry = extras.telemetry
    to.persistent_events = extras.persistent_events
    to.security = extras.security
    to.write_cache = extras.write_cache
    to.firmware_slots = extras.firmware_slots
    to.ana_groups = extras.ana
    to.key_value = extras.key_value
    to.zoned = extras.zoned
    to.zone_nbytes = extras.zone_size
    to.zone_capacity_nbytes = extras.zone_capacity
    to.max_open, to.max_active = extras.max_open, extras.max_active
    to.zasl = extras.zasl
    to.lockdown, to.boot_nbytes, to.boot_protection = extras.lockdown, extras.boot, extras.boot_protection
    to.capacity_management, to.secondary = extras.capacity_management, extras.secondary
    to.save_features = extras.save_features
    to.power_states = extras.power_states
    to.hmb_nbytes, to.hmb_min_nbytes = extras.host_memory, extras.host_memory_min
    to.hmb_entry_nbytes, to.hmb_entries = extras.host_memory_entry, extras.host_memory_entries
    to.fused_blocks = extras.fused
    to.fdp_handles, to.fdp_groups, to.fdp_unit_nbytes = extras.fdp, extras.fdp_groups, extras.fdp_unit
    to.streams = extras.streams
    for i, delay in enumerate(extras.retry_delays):
        to.retry_delays[i] = round(delay * 10)
    to.cmb_nbytes, to.pmr_nbytes = extras.cmb, extras.pmr
    to.cmb_uses = sum(1 << CMB_USES.index(name) for name in extras.cmb_uses)
    to.pmr_health, to.pmr_ready_ns = PMR_HEALTH[extras.pmr_health], <uint64_t>(extras.pmr_ready * 1e9)
    if extras.pmr_path:
        text = os.fsencode(extras.pmr_path)
        keep.append(text)
        to.pmr_path = text
    for name in extras.sgl:
        to.sgl |= SGL_BITS[name]
    to.copy_formats = sum(1 << form for form in extras.copy_formats)
    return 0


cdef void fill_timing(emu_timing *to, extras) except *:
    if extras.latency or extras.jitter or extras.bandwidth:
        to.latency_ns = <uint64_t>round(extras.latency * 1e9)
        to.jitter_ns = <uint64_t>round(extras.jitter * 1e9)
        to.bytes_per_second = extras.bandwidth
        to.channels = extras.channels


cdef int fill_features(emu_config *to, config, list keep) except -1:
    """What a controller may have beyond a plain drive."""
    cdef unsigned i
    fill_extras(&to.extras, config, keep)
    fill_timing(&to.timing, config.extras)
    to.no_effects = not config.effects
    to.adaptive_irqs = config.moderation == "adaptive"
    to.aggregation_threshold = config.aggregation_threshold - 1
    to.aggregation_time = config.aggregation_time // 100
    to.format_ns = <uint64_t>(config.format_time * 1e9)
    to.n_formats = len(config.formats)
    if to.n_formats > EMU_MAX_FORMATS:
        raise ConfigurationError(f"{len(config.formats)} LBA formats: at most {EMU_MAX_FORMATS} are allowed")
    for i, form in enumerate(config.formats):
        to.formats[i].block_size = form.block_size
        to.formats[i].metadata = form.metadata
        to.formats[i].pif = form.pif
        to.formats[i].sts = form.storage_tag_bits
    return 0


cdef int fill_config(emu_config *to, config, list keep) except -1:
    """Plain attributes to the C struct; `keep` keeps alive what it points to. The maker of
    `config` has checked the limits.
    """
    cdef bytes text
    cdef unsigned i
    memset(to, 0, sizeof(emu_config))
    if not 1 <= len(config.media) <= EMU_MAX_NAMESPACES:
        raise ConfigurationError(f"{len(config.media)} namespaces: 1 to {EMU_MAX_NAMESPACES} are allowed")
    to.n_namespaces = len(config.media)
    for i, medium in enumerate(config.media):
        fill_namespace(&to.namespaces[i], medium, keep)
    to.n_io_queues = config.queues
    to.n_vectors = config.vectors
    to.mqes = config.depth - 1
    to.mdts = config.mdts_exponent
    to.dbbuf = config.dbbuf
    fill_features(to, config, keep)
    to.vendor_id = config.vendor_id
    to.subsystem_vendor_id = config.subsystem_vendor_id
    to.device_id, to.subsystem_id = config.device_id, config.subsystem_id
    for name, value, limit in (("serial", config.serial, 20), ("model", config.model, 40), ("firmware", config.firmware, 8)):
        text = value.encode("ascii")
        if len(text) > limit:
            raise ConfigurationError(f"{name} {value!r} has {len(text)} characters: at most {limit} are allowed")
        if name == "serial":
            strncpy(to.serial, text, 20)
        elif name == "model":
            strncpy(to.model, text, 40)
        else:
            strncpy(to.firmware, text, 8)
    return 0
