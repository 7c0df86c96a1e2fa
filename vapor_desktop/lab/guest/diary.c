/* The diary: what a lab guest writes so that a recovered disk can be judged.
 *
 * Appends numbered, checksummed 512-byte records to a preallocated ring file on the data file system
 * of every disk: disk 0 first, then disk 1 …, each durable before the next (O_DIRECT | O_DSYNC, in place).
 * No journal replay is needed to read them from a crash-consistent image, and the disks of one point
 * can differ by one record at most. Format: vapor_desktop/lab/diary.py.
 *
 *   diary check FILE...            prints the verdict
 *   diary run CONTROL FILE... -- SCRATCH...   verdict, then writes until SIGTERM
 *
 * CONTROL holds lines "rate=10" (records/s), "scratch=4" (random 4 KiB writes/s), "zero=1" (64 KiB
 * zeroings/s), "discard=1" (256 KiB discards/s); it is read again whenever it changes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RECORD 512
#define BLOCK 4096
#define MAX_DISKS 8

struct record {
    char magic[8];
    uint64_t number, time_ns, boot;
    uint32_t disk, slots;
    uint8_t fill[RECORD - 8 - 3 * 8 - 2 * 4 - 4];
    uint32_t crc;
};
_Static_assert(sizeof(struct record) == RECORD, "a record is one sector");

static const char FULL[8] = "VDIARY1\n", EMPTY[8] = "VEMPTY1\n";
static volatile sig_atomic_t stopping;
static uint32_t table[256];

struct disk {
    int fd;
    uint64_t slots, last, gaps, torn;
};

static void die(const char *what) {
    fprintf(stderr, "VAPOR-DIARY failed: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void stop(int number) { (void)number; stopping = 1; }

static uint32_t crc32(const uint8_t *data, size_t size) { /* zlib's */
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
            table[i] = c;
        }
    uint32_t crc = 0xFFFFFFFFu;
    while (size--) crc = table[(crc ^ *data++) & 0xFF] ^ (crc >> 8);
    return crc ^ 0xFFFFFFFFu;
}

static uint64_t mix(uint64_t *state) { /* xorshift64* */
    *state ^= *state >> 12; *state ^= *state << 25; *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Dull;
}

static void *aligned(size_t size) {
    void *memory = NULL;
    if (posix_memalign(&memory, BLOCK, size)) die("memory");
    memset(memory, 0, size);
    return memory;
}

static void check(struct disk *disk, uint32_t index) {
    size_t size = disk->slots * RECORD;
    struct record *ring = aligned(size);
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(disk->fd, (char *)ring + done, size - done, done);
        if (got <= 0) die("read");
        done += got;
    }
    uint64_t *numbers = calloc(disk->slots, sizeof *numbers);
    disk->last = disk->torn = disk->gaps = 0;
    for (uint64_t slot = 0; slot < disk->slots; slot++) {
        struct record *r = &ring[slot];
        if (!memcmp(r->magic, EMPTY, 8)) continue;
        if (memcmp(r->magic, FULL, 8) || r->crc != crc32((uint8_t *)r, RECORD - 4) || r->disk != index ||
            (r->number - 1) % disk->slots != slot) { disk->torn++; continue; }
        numbers[slot] = r->number;
        if (r->number > disk->last) disk->last = r->number;
    }
    uint64_t first = disk->last > disk->slots ? disk->last - disk->slots + 1 : 1;
    for (uint64_t n = first; n <= disk->last; n++)
        if (numbers[(n - 1) % disk->slots] != n) disk->gaps++;
    free(numbers);
    free(ring);
}

static void verdict(struct disk *disks, int count, const char *word) {
    uint64_t last = 0, least = UINT64_MAX, gaps = 0, torn = 0;
    for (int i = 0; i < count; i++) {
        if (disks[i].last > last) last = disks[i].last;
        if (disks[i].last < least) least = disks[i].last;
        gaps += disks[i].gaps;
        torn += disks[i].torn;
    }
    printf("VAPOR-DIARY %slast=%llu gaps=%llu torn=%llu disks=%d skew=%llu\n", word, (unsigned long long)last,
           (unsigned long long)gaps, (unsigned long long)torn, count, (unsigned long long)(last - least));
    fflush(stdout);
}

static void append(struct disk *disk, uint32_t index, uint64_t number, uint64_t boot) {
    static struct record *r;
    if (!r) r = aligned(BLOCK);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    memcpy(r->magic, FULL, 8);
    r->number = number;
    r->time_ns = (uint64_t)now.tv_sec * 1000000000ull + now.tv_nsec;
    r->boot = boot;
    r->disk = index;
    r->slots = disk->slots;
    uint64_t state = number * 0x9E3779B97F4A7C15ull + index + 1;
    for (size_t i = 0; i < sizeof r->fill; i++) r->fill[i] = mix(&state) >> 56;
    r->crc = crc32((uint8_t *)r, RECORD - 4);
    if (pwrite(disk->fd, r, RECORD, (number - 1) % disk->slots * RECORD) != RECORD) die("append");
    disk->last = number;
}

enum { RATE, SCRATCH, ZERO, DISCARD, KINDS };
static const char *const KEYS[KINDS] = {"rate=", "scratch=", "zero=", "discard="};

static void settings(const char *path, double rates[KINDS]) {
    static struct timespec seen;
    struct stat found;
    if (stat(path, &found) || (found.st_mtim.tv_sec == seen.tv_sec && found.st_mtim.tv_nsec == seen.tv_nsec)) return;
    seen = found.st_mtim;
    FILE *file = fopen(path, "r");
    char line[256];
    if (!file) return;
    while (fgets(line, sizeof line, file))
        for (int k = 0; k < KINDS; k++)
            if (!strncmp(line, KEYS[k], strlen(KEYS[k]))) rates[k] = atof(line + strlen(KEYS[k]));
    fclose(file);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void disturb(int kind, int fd, uint64_t size, uint64_t *state) {
    static uint8_t *block;
    if (!block) block = aligned(BLOCK);
    uint64_t length = kind == SCRATCH ? BLOCK : kind == ZERO ? 64 * 1024 : 256 * 1024;
    if (size < length) return;
    uint64_t range[2] = {mix(state) % (size / length) * length, length};
    if (kind == SCRATCH) {
        for (size_t i = 0; i < BLOCK; i += 8) *(uint64_t *)(block + i) = mix(state);
        if (pwrite(fd, block, BLOCK, range[0]) != BLOCK) die("scratch write");
    } else if (ioctl(fd, kind == ZERO ? BLKZEROOUT : BLKDISCARD, range) && errno != EOPNOTSUPP)
        die(kind == ZERO ? "zero" : "discard");
}

int main(int argc, char **argv) {
    struct disk disks[MAX_DISKS];
    int scratch[MAX_DISKS], count = 0, scratches = 0, running = argc > 1 && !strcmp(argv[1], "run");
    uint64_t sizes[MAX_DISKS];
    if (argc < 3) return 2;
    int i = running ? 3 : 2;
    for (; i < argc && strcmp(argv[i], "--") && count < MAX_DISKS; i++, count++) {
        struct disk *disk = &disks[count];
        struct stat found;
        disk->fd = open(argv[i], running ? O_RDWR | O_DIRECT | O_DSYNC : O_RDONLY);
        if (disk->fd < 0 || fstat(disk->fd, &found)) die(argv[i]);
        disk->slots = found.st_size / RECORD;
        check(disk, count);
    }
    verdict(disks, count, "");
    if (!running) return 0;
    for (i++; i < argc && scratches < MAX_DISKS; i++, scratches++) {
        scratch[scratches] = open(argv[i], O_RDWR | O_DIRECT);
        if (scratch[scratches] < 0 || ioctl(scratch[scratches], BLKGETSIZE64, &sizes[scratches])) die(argv[i]);
    }
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    uint64_t boot = 0, number = 0;
    if (getrandom(&boot, sizeof boot, 0) != sizeof boot) die("random");
    uint64_t state = boot | 1;
    for (int d = 0; d < count; d++)
        if (disks[d].last > number) number = disks[d].last;
    /* A power cut between two disks leaves one record of difference: complete it. More is a fault: leave it seen. */
    for (int d = 0; d < count; d++)
        if (number && disks[d].last + 1 == number) append(&disks[d], d, number, boot);
    double rates[KINDS] = {10, 4, 0.5, 0.5}, due[KINDS] = {0};
    while (!stopping) {
        settings(argv[2], rates);
        double now = seconds(), next = now + 0.5;
        for (int kind = 0; kind < KINDS; kind++) {
            if (rates[kind] <= 0 || (kind != RATE && !scratches)) continue;
            if (due[kind] <= now) {
                if (kind == RATE) {
                    number++;
                    for (int d = 0; d < count; d++) append(&disks[d], d, number, boot);
                } else {
                    int which = mix(&state) % scratches;
                    disturb(kind, scratch[which], sizes[which], &state);
                }
                due[kind] = (due[kind] > now - 1 ? due[kind] : now) + 1 / rates[kind];
            }
            if (due[kind] < next) next = due[kind];
        }
        double pause = next - seconds();
        if (pause > 0) {
            struct timespec wait = {(time_t)pause, (long)((pause - (time_t)pause) * 1e9)};
            nanosleep(&wait, NULL);
        }
    }
    verdict(disks, count, "stopped ");
    return 0;
}
