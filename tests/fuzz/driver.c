/*
 * A small coverage-guided fuzzer, for what the project installs anyway: gcc with
 * -fsanitize-coverage=trace-pc. A target is a file with libFuzzer's entry point, so clang's
 * -fsanitize=fuzzer takes it too, without this file.
 *
 *   PROGRAM FILE…                    runs each file once: regression seeds
 *   PROGRAM --seconds N --crash FILE [--seed N] FILE…
 *                                    mutates the files, keeps what reaches new code
 *
 * The input that runs is always in the crash file, which is shared memory: when a sanitizer ends
 * the process, it is there. It is removed at the end of a run without a crash.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define NO_COVERAGE __attribute__((no_sanitize_coverage))
#define MAP_SIZE (1u << 16)
#define MAX_INPUT (1u << 16)
#define MAX_CORPUS 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Hits of each edge in the current run, from every thread; a lost count does no harm. */
static uint8_t hits[MAP_SIZE] __attribute__((aligned(8)));
static uint8_t seen[MAP_SIZE]; /* classes of hit counts, as bits, of all runs */
static __thread uint32_t previous;

void __sanitizer_cov_trace_pc(void);
void NO_COVERAGE __sanitizer_cov_trace_pc(void)
{
    const uintptr_t pc = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&LLVMFuzzerTestOneInput;
    const uint32_t place = (uint32_t)(pc * 0x9e3779b1u) >> 16;
    hits[(place ^ previous) % MAP_SIZE]++;
    previous = place >> 1;
}

struct input {
    uint8_t *data;
    size_t size;
};

static struct input corpus[MAX_CORPUS];
static uint32_t n_corpus;
static uint64_t random_state = 1;

static uint64_t draw(uint64_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return below ? random_state % below : 0;
}

static void keep(const uint8_t *data, size_t size)
{
    const uint32_t at = n_corpus < MAX_CORPUS ? n_corpus++ : (uint32_t)draw(MAX_CORPUS);
    free(corpus[at].data);
    corpus[at] = (struct input){malloc(size + 1), size};
    if (!corpus[at].data)
        abort();
    memcpy(corpus[at].data, data, size);
}

/* Whether the last run reached an edge, or a class of its count, that none did before. */
static int news(void)
{
    int found = 0;
    for (uint32_t i = 0; i < MAP_SIZE; i++) {
        if (i % 8 == 0 && !*(const uint64_t *)(const void *)&hits[i]) {
            i += 7;
            continue;
        }
        if (!hits[i])
            continue;
        const uint8_t class = (uint8_t)(1u << (31 - __builtin_clz(hits[i])));
        found |= !(seen[i] & class);
        seen[i] |= class;
    }
    return found;
}

static const uint64_t interesting[] = {
    0,          1,          2,          3,          4,         7,       8,          15,
    16,         0x7f,       0x80,       0xff,       0x100,     0x1ff,   0x200,      0xfff,
    0x1000,     0x1001,     0x7fff,     0x8000,     0xffff,    0x10000, 0x7fffffff, 0x80000000,
    0xfffff000, 0xffffffff, 1ull << 32, 1ull << 63, ~0ull - 1, ~0ull,   ~0ull << 12};

static size_t mutate(uint8_t *data, size_t size)
{
    const size_t width = (size_t)1 << draw(4);
    const size_t at = draw(size + 1);
    const size_t room = size - at, n = 1 + draw(room < 64 ? room : 64);
    uint64_t value = interesting[draw(sizeof interesting / sizeof *interesting)];
    switch (draw(9)) {
    case 0: /* a bit */
        if (room)
            data[at] ^= (uint8_t)(1u << draw(8));
        return size;
    case 1: /* a byte */
        if (room)
            data[at] = (uint8_t)draw(256);
        return size;
    case 2: /* a number of some width */
        if (room >= width)
            memcpy(data + at, &value, width);
        return size;
    case 3: /* the same, a little more or less */
        if (room >= width) {
            memcpy(&value, data + at, width);
            value += draw(33) - 16;
            memcpy(data + at, &value, width);
        }
        return size;
    case 4: /* less */
        if (room >= n) {
            memmove(data + at, data + at + n, room - n);
            return size - n;
        }
        return size;
    case 5: /* a part twice */
        if (room >= n && size + n <= MAX_INPUT) {
            memmove(data + at + n, data + at, room);
            return size + n;
        }
        return size;
    case 6: /* random bytes between */
        if (size + n <= MAX_INPUT) {
            memmove(data + at + n, data + at, room);
            for (size_t i = 0; i < n; i++)
                data[at + i] = (uint8_t)draw(256);
            return size + n;
        }
        return size;
    default: { /* a part of another */
        const struct input *other = &corpus[draw(n_corpus)];
        const size_t from = draw(other->size + 1);
        size_t count = draw(other->size - from + 1);
        if (count > MAX_INPUT - at)
            count = MAX_INPUT - at;
        memcpy(data + at, other->data + from, count);
        return at + count > size ? at + count : size;
    }
    }
}

static int load(const char *path)
{
    static uint8_t data[MAX_INPUT];
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 0;
    }
    keep(data, fread(data, 1, sizeof data, file));
    fclose(file);
    return 1;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct crash { /* what the crash file holds */
    uint64_t size;
    uint8_t data[MAX_INPUT];
};

static struct crash *crash_file(const char *path)
{
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, sizeof(struct crash)))
        return NULL;
    struct crash *mapped = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return mapped == MAP_FAILED ? NULL : mapped;
}

int main(int argc, char **argv)
{
    const char *crash = NULL;
    double seconds = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seconds") && i + 1 < argc)
            seconds = strtod(argv[++i], NULL);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            random_state = strtoull(argv[++i], NULL, 0) | 1;
        else if (!strcmp(argv[i], "--crash") && i + 1 < argc)
            crash = argv[++i];
        else if (!load(argv[i]))
            return 2;
    }
    if (!n_corpus)
        keep((const uint8_t *)"", 0);
    uint64_t runs = 0;
    for (uint32_t i = 0, n = n_corpus; i < n; i++, runs++) {
        memset(hits, 0, sizeof hits);
        previous = 0;
        LLVMFuzzerTestOneInput(corpus[i].data, corpus[i].size);
        (void)news();
    }
    if (seconds > 0) {
        struct crash *input = crash ? crash_file(crash) : NULL;
        if (!input) {
            fprintf(stderr, "--crash must name a file that can be written\n");
            return 2;
        }
        const double end = now() + seconds;
        for (; now() < end; runs++) {
            const struct input *from = &corpus[draw(n_corpus)];
            memcpy(input->data, from->data, from->size);
            size_t size = from->size;
            for (uint64_t i = 1 + draw(8); i; i--)
                size = mutate(input->data, size);
            input->size = size;
            memset(hits, 0, sizeof hits);
            previous = 0;
            LLVMFuzzerTestOneInput(input->data, size);
            if (news())
                keep(input->data, size);
        }
        unlink(crash);
    }
    uint32_t edges = 0;
    for (uint32_t i = 0; i < MAP_SIZE; i++)
        edges += seen[i] != 0;
    printf("%llu runs, %u inputs, %u edges\n", (unsigned long long)runs, n_corpus, edges);
    return 0;
}
