# The memory of a pool: a file of huge or ordinary pages, mapped, spread over NUMA nodes.

def _new_memory(nbytes, name, hugepages):
    """(descriptor, its size): a sealed memfd, of huge pages if requested and available."""
    if hugepages not in ("auto", "never", "require"):
        raise ValueError(f"hugepages={hugepages!r} is not one of 'auto', 'never', 'require'")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if hugepages != "never":
        size = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
        fd = -1
        try:
            fd = os.memfd_create(name, flags | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
            os.truncate(fd, size)
            # A shared mapping reserves the pages for the file, so that no later access can fail:
            # this shows that there are enough.
            _unmap(_map(fd, size), size)
            return fd, size
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if hugepages == "require":
                raise OutOfDmaMemory(
                    f"no {size // HUGE_PAGE} free huge pages of 2 MiB for pool {name!r} ({error.strerror}; see vm.nr_hugepages)"
                ) from None
    size = -(-nbytes // PAGE_SIZE) * PAGE_SIZE
    fd = -1
    try:
        fd = os.memfd_create(name, flags)
        os.truncate(fd, size)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise OutOfDmaMemory(f"no memory of {size} bytes for pool {name!r}: {error.strerror}") from error
        raise
    return fd, size


def _map(int fd, size_t nbytes):
    cdef void *mapping = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if mapping == MAP_FAILED:
        PyErr_SetFromErrno(OSError)
    return <size_t>mapping


def _unmap(size_t address, size_t nbytes):
    munmap(<void *>address, nbytes)


def _spread(size_t address, size_t nbytes, nodes):
    """Equal parts of untouched shared memory prefer one NUMA node each, in order: [(node,
    offset, bytes)]. Empty without kernel support. Only a preference: if a node is full, memory
    comes from another one.
    """
    cdef unsigned long mask[16]
    cdef size_t unit = HUGE_PAGE if nbytes >= HUGE_PAGE * len(nodes) else PAGE_SIZE
    cdef size_t at = 0, end
    cdef int node, i, count = len(nodes)
    found = []
    for i in range(count):
        node = nodes[i]
        if not 0 <= node < 1024:
            raise ValueError(f"NUMA node {node} must be 0 to 1023")
        end = nbytes if i == count - 1 else nbytes * (i + 1) // count // unit * unit
        if end == at:
            continue
        memset(mask, 0, sizeof(mask))
        mask[node // 64] = 1ul << (node % 64)
        if syscall(SYS_mbind, address + at, end - at, MPOL_PREFERRED, mask, 1025, 0):
            return ()
        found.append((node, at, end - at))
        at = end
    return tuple(found)
