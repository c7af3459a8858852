/* Makes chosen calls on a node's files fail or lag, and its wall clock wrong. Preloaded into the node; told what to do,
 * and telling what it did, through a small file that the harness and the node map together (the layout is that of
 * `shim.rs`).
 *
 * Only regular files above descriptor 2 are concerned: the node's log and its sockets are left alone. Only the time of
 * day is shifted, never the monotonic clock that timers go by. The clock is asked while the memory allocator starts,
 * so what answers it must neither allocate nor look up symbols: it asks the kernel directly. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

struct control {
  _Atomic uint32_t syncs_to_fail;  /* the next so many syncs fail with EIO */
  _Atomic uint32_t sync_delay_ms;  /* every sync takes this much longer */
  _Atomic uint32_t write_errno;    /* every write fails with this, unless 0 */
  _Atomic uint32_t syncs_failed;   /* counted */
  _Atomic uint32_t syncs_delayed;  /* counted */
  _Atomic uint32_t writes_failed;  /* counted */
  _Atomic int64_t clock_offset_ns; /* the time of day is off by this */
  _Atomic uint32_t clock_reads;    /* counted, while it is off */
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("JEPSEN_SHIM");
  if (!path) return;
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *at = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (at != MAP_FAILED) control = at;
}

static int concerned(int fd) {
  struct stat s;
  return control && fd > 2 && fstat(fd, &s) == 0 && S_ISREG(s.st_mode);
}

/* Whether this sync is to fail; waits if it is to be slow. */
static int sync_fails(int fd) {
  if (!control || (!control->syncs_to_fail && !control->sync_delay_ms) || !concerned(fd)) return 0;
  uint32_t left = atomic_load(&control->syncs_to_fail);
  while (left > 0)
    if (atomic_compare_exchange_weak(&control->syncs_to_fail, &left, left - 1)) {
      atomic_fetch_add(&control->syncs_failed, 1);
      errno = EIO;
      return 1;
    }
  uint32_t delay = control->sync_delay_ms;
  if (delay) {
    atomic_fetch_add(&control->syncs_delayed, 1);
    usleep(delay * 1000);
  }
  return 0;
}

static int write_fails(int fd) {
  uint32_t reason = control ? control->write_errno : 0;
  if (!reason || !concerned(fd)) return 0;
  atomic_fetch_add(&control->writes_failed, 1);
  errno = (int)reason;
  return 1;
}

static int now(clockid_t clock, struct timespec *at) {
  int result = (int)syscall(SYS_clock_gettime, clock, at);
  int64_t offset = control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) ? control->clock_offset_ns : 0;
  if (result == 0 && offset) {
    atomic_fetch_add(&control->clock_reads, 1);
    int64_t ns = at->tv_nsec + offset % SECOND;
    at->tv_sec += offset / SECOND + (ns >= SECOND) - (ns < 0);
    at->tv_nsec = ns + (ns < 0 ? SECOND : 0) - (ns >= SECOND ? SECOND : 0);
  }
  return result;
}

int clock_gettime(clockid_t clock, struct timespec *at) { return now(clock, at); }
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  (void)zone;
  struct timespec precise;
  int result = now(CLOCK_REALTIME, &precise);
  if (result == 0) *at = (struct timeval){precise.tv_sec, precise.tv_nsec / 1000};
  return result;
}
time_t time(time_t *at) {
  struct timespec precise;
  if (now(CLOCK_REALTIME, &precise) != 0) return -1;
  if (at) *at = precise.tv_sec;
  return precise.tv_sec;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return sync_fails(fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return sync_fails(fd) ? -1 : REAL(fdatasync)(fd); }
int sync_file_range(int fd, off_t at, off_t length, unsigned flags) {
  return sync_fails(fd) ? -1 : REAL(sync_file_range)(fd, at, length, flags);
}
ssize_t write(int fd, const void *from, size_t length) {
  static __typeof__(&write) real;
  if (!real) real = REAL(write);
  return write_fails(fd) ? -1 : real(fd, from, length);
}
ssize_t writev(int fd, const struct iovec *from, int count) {
  static __typeof__(&writev) real;
  if (!real) real = REAL(writev);
  return write_fails(fd) ? -1 : real(fd, from, count);
}
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at) {
  static __typeof__(&pwrite64) real;
  if (!real) real = REAL(pwrite64);
  return write_fails(fd) ? -1 : real(fd, from, length, at);
}
