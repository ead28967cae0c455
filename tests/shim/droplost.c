/* Power loss for one process: keeps, beside a data directory, a shadow of what was synced.
 *
 * Preloaded (LD_PRELOAD) into a process that writes below RINGFOLD_SHIM_DIR. The shadow
 * (RINGFOLD_SHIM_SHADOW, on the same file system, outside that directory) holds
 *   f-<inode>-<birth>  the content of a file as of its last fsync, fdatasync or msync
 *   d-<inode>-<birth>  the entries of a directory as of its last fsync: "f|d <inode>-<birth> <name>\n"
 * Nothing else survives: a file whose directory was not synced after it was created or renamed is
 * gone, a file that was never synced is empty. Entries name inodes, so links, renames and removals
 * need no bookkeeping. After a kill -9 the tests rebuild the directory from the shadow.
 *
 * Writes are followed as ranges not yet synced, by inode, so that a sync copies only those. What a
 * process before this one wrote is not known: the first sync of an older file copies all of it, as a
 * sync makes durable whoever wrote it.
 * O_SYNC and O_DSYNC are not honoured (a write counts once it is synced by a call), which errs on the
 * side of losing more. While the file RINGFOLD_SHIM_FAIL exists, every sync fails with EIO.
 * With RINGFOLD_SHIM_VERIFY each sync compares the whole file with its shadow and aborts when a write
 * went past the shim unseen (for programs with one thread: a write meanwhile looks the same).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FDS 65536
#define BUCKETS 4096

struct range {
  off_t from, to;
};

/* A file below the directory, alive in this process's tables from its first write on. */
struct file {
  struct file *next;
  ino_t ino;
  uint64_t birth_ns;
  pthread_mutex_t lock;
  struct range *dirty;
  size_t dirty_len, dirty_cap;
  off_t least_size; /* least size since the last sync, -1: it did not shrink */
  int whole;        /* written in ways that are not followed: copy all of it */
};

/* What is known of a descriptor: NULL: not looked at; OTHER: none of ours. */
static struct file *volatile fds[FDS];
static struct file other;
#define OTHER (&other)

static struct file *files[BUCKETS];
static pthread_mutex_t files_lock = PTHREAD_MUTEX_INITIALIZER;
static char dir[PATH_MAX], shadow[PATH_MAX], fail_path[PATH_MAX];
static size_t dir_len;
static uint64_t start_ns;
static int on, verify;

static void die(const char *what) {
  int e = errno;
  dprintf(2, "droplost: %s: %s\n", what, strerror(e));
  abort();
}

__attribute__((constructor)) static void start(void) {
  const char *d = getenv("RINGFOLD_SHIM_DIR"), *s = getenv("RINGFOLD_SHIM_SHADOW");
  const char *f = getenv("RINGFOLD_SHIM_FAIL");
  if (!d || !s) return;
  if (!realpath(d, dir)) die("RINGFOLD_SHIM_DIR");
  if (!realpath(s, shadow)) die("RINGFOLD_SHIM_SHADOW");
  dir_len = strlen(dir);
  if (f) snprintf(fail_path, sizeof fail_path, "%s", f);
  verify = getenv("RINGFOLD_SHIM_VERIFY") != NULL;
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now) != 0) die("clock_gettime");
  start_ns = (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
  on = 1;
}

/* Inode numbers are used again: only the time of birth tells two files apart. */
static int identity(int fd, const char *name, int flags, struct statx *st) {
  if (syscall(SYS_statx, fd, name, flags, STATX_BASIC_STATS | STATX_BTIME, st) != 0) return -1;
  if (!(st->stx_mask & STATX_BTIME)) {
    errno = ENOTSUP;
    die("this file system keeps no time of birth; put the tests' directory on ext4, xfs or btrfs");
  }
  return 0;
}

static uint64_t birth(const struct statx *st) {
  return (uint64_t)st->stx_btime.tv_sec * 1000000000u + st->stx_btime.tv_nsec;
}

static int below_dir(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return (size_t)n >= dir_len && memcmp(path, dir, dir_len) == 0 &&
         (path[dir_len] == 0 || path[dir_len] == '/');
}

/* The file behind a descriptor, or NULL when it is none of ours. */
static struct file *file_of(int fd) {
  if (!on || fd < 0) return NULL;
  if (fd >= FDS) {
    errno = EMFILE;
    die("more descriptors than the shim follows");
  }
  struct file *f = __atomic_load_n(&fds[fd], __ATOMIC_ACQUIRE);
  if (f) return f == OTHER ? NULL : f;
  int saved = errno;
  struct stat plain;
  f = OTHER;
  if (fstat(fd, &plain) == 0 && S_ISREG(plain.st_mode) && below_dir(fd)) {
    struct statx st;
    if (identity(fd, "", AT_EMPTY_PATH, &st) != 0) die("statx");
    uint64_t b = birth(&st);
    pthread_mutex_lock(&files_lock);
    struct file **bucket = &files[st.stx_ino % BUCKETS];
    for (f = *bucket; f; f = f->next)
      if (f->ino == st.stx_ino && f->birth_ns == b) break;
    if (!f) {
      f = calloc(1, sizeof *f);
      if (!f) die("memory");
      f->ino = st.stx_ino;
      f->birth_ns = b;
      f->least_size = -1;
      f->whole = b < start_ns;
      pthread_mutex_init(&f->lock, NULL);
      f->next = *bucket;
      *bucket = f;
    }
    pthread_mutex_unlock(&files_lock);
  }
  __atomic_store_n(&fds[fd], f, __ATOMIC_RELEASE);
  errno = saved;
  return f == OTHER ? NULL : f;
}

static void forget(int fd) {
  if (fd >= 0 && fd < FDS) __atomic_store_n(&fds[fd], NULL, __ATOMIC_RELEASE);
}

/* With f->lock held. Neighbours in time are mostly neighbours in place. */
static void mark(struct file *f, off_t from, off_t to) {
  if (from >= to) return;
  if (f->dirty_len) {
    struct range *last = &f->dirty[f->dirty_len - 1];
    if (from <= last->to && to >= last->from) {
      if (from < last->from) last->from = from;
      if (to > last->to) last->to = to;
      return;
    }
  }
  if (f->dirty_len == f->dirty_cap) {
    f->dirty_cap = f->dirty_cap ? 2 * f->dirty_cap : 16;
    f->dirty = realloc(f->dirty, f->dirty_cap * sizeof *f->dirty);
    if (!f->dirty) die("memory");
  }
  f->dirty[f->dirty_len++] = (struct range){from, to};
}

static void mark_shrunk(struct file *f, off_t size) {
  if (f->least_size < 0 || size < f->least_size) f->least_size = size;
}

static void shadow_path(char *path, char kind, ino_t ino, uint64_t birth_ns) {
  snprintf(path, PATH_MAX + 64, "%s/%c-%llu-%llu", shadow, kind, (unsigned long long)ino,
           (unsigned long long)birth_ns);
}

static void copy_range(int in, int out, off_t from, off_t to) {
  static __thread char buffer[1 << 16];
  while (from < to) {
    size_t want = to - from < (off_t)sizeof buffer ? (size_t)(to - from) : sizeof buffer;
    ssize_t n = syscall(SYS_pread64, in, buffer, want, from);
    if (n < 0) die("reading what is synced");
    if (n == 0) return; /* it has shrunk meanwhile */
    for (ssize_t done = 0; done < n;) {
      ssize_t w = syscall(SYS_pwrite64, out, buffer + done, n - done, from + done);
      if (w < 0) die("writing the shadow");
      done += w;
    }
    from += n;
  }
}

static void compare(int in, int out, off_t size) {
  static __thread char a[1 << 16], b[1 << 16];
  for (off_t at = 0; at < size;) {
    ssize_t n = syscall(SYS_pread64, in, a, sizeof a, at);
    ssize_t m = syscall(SYS_pread64, out, b, sizeof b, at);
    if (n != m || n <= 0 || memcmp(a, b, n) != 0) {
      errno = EPROTO;
      die("a write went past the shim");
    }
    at += n;
  }
}

/* Copies what a sync has just made durable. The descriptor may be open for writing only. */
static void sync_file(struct file *f, int fd) {
  char path[PATH_MAX + 64], self[64];
  snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
  int in = syscall(SYS_openat, AT_FDCWD, self, O_RDONLY | O_CLOEXEC);
  if (in < 0) die("opening what is synced");
  shadow_path(path, 'f', f->ino, f->birth_ns);
  pthread_mutex_lock(&f->lock);
  int out = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (out < 0) die(path);
  struct stat st;
  if (fstat(in, &st) != 0) die("fstat");
  if (f->least_size >= 0) {
    struct stat kept;
    if (fstat(out, &kept) != 0) die("fstat");
    if (f->least_size < kept.st_size && syscall(SYS_ftruncate, out, f->least_size) != 0)
      die("ftruncate");
  }
  if (f->whole) {
    if (syscall(SYS_ftruncate, out, 0L) != 0) die("ftruncate");
    copy_range(in, out, 0, st.st_size);
  }
  for (size_t i = 0; i < f->dirty_len; i++) copy_range(in, out, f->dirty[i].from, f->dirty[i].to);
  if (syscall(SYS_ftruncate, out, st.st_size) != 0) die("ftruncate");
  if (verify) compare(in, out, st.st_size);
  f->dirty_len = 0;
  f->least_size = -1;
  f->whole = 0;
  pthread_mutex_unlock(&f->lock);
  syscall(SYS_close, in);
  syscall(SYS_close, out);
}

static void sync_dir(int fd) {
  static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
  static unsigned long number;
  struct statx st;
  char path[PATH_MAX + 64], temp[PATH_MAX + 64];
  pthread_mutex_lock(&one);
  int copy = syscall(SYS_openat, fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0 && errno == ENOENT) { /* removed by another thread: nobody asks for it again */
    pthread_mutex_unlock(&one);
    return;
  }
  if (copy < 0 || identity(copy, "", AT_EMPTY_PATH, &st) != 0) die("opening a directory");
  shadow_path(path, 'd', st.stx_ino, birth(&st));
  snprintf(temp, sizeof temp, "%s/temp-%d-%lu", shadow, getpid(), number++);
  int out = syscall(SYS_openat, AT_FDCWD, temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (out < 0) die(temp);
  static char list[1 << 20];
  size_t length = 0;
  char entries[1 << 15] __attribute__((aligned(16)));
  long n;
  while ((n = syscall(SYS_getdents64, copy, entries, sizeof entries)) > 0) {
    for (long at = 0; at < n;) {
      struct dirent64 *e = (struct dirent64 *)(entries + at);
      at += e->d_reclen;
      if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
      struct statx es;
      if (identity(copy, e->d_name, AT_SYMLINK_NOFOLLOW, &es) != 0) continue; /* just removed */
      char kind = S_ISDIR(es.stx_mode) ? 'd' : S_ISREG(es.stx_mode) ? 'f' : 0;
      if (!kind) continue;
      int w = snprintf(list + length, sizeof list - length, "%c %llu-%llu %s\n", kind,
                       (unsigned long long)es.stx_ino, (unsigned long long)birth(&es), e->d_name);
      if (w < 0 || (size_t)w >= sizeof list - length) {
        errno = E2BIG;
        die("a directory with more entries than the shim follows");
      }
      length += w;
    }
  }
  if (n < 0 && errno != ENOENT) die("getdents64"); /* ENOENT: removed by another thread */
  for (size_t done = 0; done < length;) {
    ssize_t w = syscall(SYS_write, out, list + done, length - done);
    if (w < 0) die("writing the shadow");
    done += w;
  }
  syscall(SYS_close, out);
  syscall(SYS_close, copy);
  if (syscall(SYS_renameat2, AT_FDCWD, temp, AT_FDCWD, path, 0) != 0) die("rename");
  pthread_mutex_unlock(&one);
}

static int synced(long number, int fd) {
  if (!on) return syscall(number, fd);
  struct stat st;
  struct file *f = file_of(fd);
  int is_dir = !f && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode) && below_dir(fd);
  if ((f || is_dir) && fail_path[0] && syscall(SYS_faccessat, AT_FDCWD, fail_path, F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  int result = syscall(number, fd);
  if (result != 0) return result;
  if (f) sync_file(f, fd);
  if (is_dir) sync_dir(fd);
  return 0;
}

int fsync(int fd) { return synced(SYS_fsync, fd); }
int fdatasync(int fd) { return synced(SYS_fdatasync, fd); }
void sync(void) { errno = ENOSYS; die("sync() is not followed"); }
int syncfs(int fd) { (void)fd; errno = ENOSYS; die("syncfs() is not followed"); return -1; }

/* Starts write-back and promises nothing. */
int sync_file_range(int fd, off_t offset, off_t bytes, unsigned flags) {
  return syscall(SYS_sync_file_range, fd, offset, bytes, flags);
}

/* A write at the descriptor's own offset: where it went is read back, so one at a time. */
#define AT_OFFSET(fd, call)                                  \
  struct file *f = file_of(fd);                              \
  if (!f) return call;                                       \
  pthread_mutex_lock(&f->lock);                              \
  ssize_t n = call;                                          \
  int saved = errno;                                         \
  if (n > 0) {                                               \
    off_t end = syscall(SYS_lseek, fd, 0L, SEEK_CUR);        \
    mark(f, end - n, end);                                   \
  }                                                          \
  pthread_mutex_unlock(&f->lock);                            \
  errno = saved;                                             \
  return n;

#define AT_PLACE(fd, at, call)                               \
  ssize_t n = call;                                          \
  int saved = errno;                                         \
  struct file *f = n > 0 ? file_of(fd) : NULL;               \
  if (f) {                                                   \
    pthread_mutex_lock(&f->lock);                            \
    mark(f, at, at + n);                                     \
    pthread_mutex_unlock(&f->lock);                          \
  }                                                          \
  errno = saved;                                             \
  return n;

ssize_t write(int fd, const void *b, size_t n_) { AT_OFFSET(fd, syscall(SYS_write, fd, b, n_)) }
ssize_t writev(int fd, const struct iovec *v, int c) { AT_OFFSET(fd, syscall(SYS_writev, fd, v, c)) }
ssize_t pwrite(int fd, const void *b, size_t n_, off_t at) {
  AT_PLACE(fd, at, syscall(SYS_pwrite64, fd, b, n_, at))
}
ssize_t pwritev(int fd, const struct iovec *v, int c, off_t at) {
  AT_PLACE(fd, at, syscall(SYS_pwritev, fd, v, c, at, 0L))
}
ssize_t pwritev2(int fd, const struct iovec *v, int c, off_t at, int flags) {
  if (at == -1) {
    AT_OFFSET(fd, syscall(SYS_pwritev2, fd, v, c, at, 0L, flags))
  }
  AT_PLACE(fd, at, syscall(SYS_pwritev2, fd, v, c, at, 0L, flags))
}
ssize_t pwrite64(int fd, const void *b, size_t n, off_t at) __attribute__((alias("pwrite")));
ssize_t pwritev64(int fd, const struct iovec *v, int c, off_t at) __attribute__((alias("pwritev")));
ssize_t pwritev64v2(int fd, const struct iovec *v, int c, off_t at, int flags)
    __attribute__((alias("pwritev2")));

static void mark_whole(int fd) {
  int saved = errno;
  struct file *f = file_of(fd);
  if (f) {
    pthread_mutex_lock(&f->lock);
    f->whole = 1;
    pthread_mutex_unlock(&f->lock);
  }
  errno = saved;
}

ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags) {
  ssize_t done = syscall(SYS_copy_file_range, in, in_at, out, out_at, n, flags);
  if (done > 0) mark_whole(out);
  return done;
}
ssize_t sendfile(int out, int in, off_t *at, size_t n) {
  ssize_t done = syscall(SYS_sendfile, out, in, at, n);
  if (done > 0) mark_whole(out);
  return done;
}
ssize_t sendfile64(int out, int in, off_t *at, size_t n) __attribute__((alias("sendfile")));
ssize_t splice(int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags) {
  ssize_t done = syscall(SYS_splice, in, in_at, out, out_at, n, flags);
  if (done > 0) mark_whole(out);
  return done;
}

/* A shared mapping may be written at any time, unseen: better to say so than to lose too much. */
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t at) {
  void *p = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, at);
  if (on && fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && file_of(fd)) {
    errno = ENOTSUP;
    die("a shared writable mapping is not followed");
  }
  return p;
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t at)
    __attribute__((alias("mmap")));

int ftruncate(int fd, off_t size) {
  struct file *f = file_of(fd);
  if (!f) return syscall(SYS_ftruncate, fd, size);
  pthread_mutex_lock(&f->lock);
  int result = syscall(SYS_ftruncate, fd, size);
  if (result == 0) mark_shrunk(f, size);
  pthread_mutex_unlock(&f->lock);
  return result;
}
int ftruncate64(int fd, off_t size) __attribute__((alias("ftruncate")));

int truncate(const char *path, off_t size) {
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  forget(fd);
  int result = ftruncate(fd, size), saved = errno;
  forget(fd);
  syscall(SYS_close, fd);
  errno = saved;
  return result;
}
int truncate64(const char *path, off_t size) __attribute__((alias("truncate")));

int fallocate(int fd, int mode, off_t at, off_t length) {
  int result = syscall(SYS_fallocate, fd, mode, at, length);
  /* Plain allocation only adds zeros, or size: a sync takes the size over by itself. */
  if (result == 0 && (mode & ~FALLOC_FL_KEEP_SIZE)) mark_whole(fd);
  return result;
}
int fallocate64(int fd, int mode, off_t at, off_t length) __attribute__((alias("fallocate")));
int posix_fallocate(int fd, off_t at, off_t length) {
  return syscall(SYS_fallocate, fd, 0, at, length) == 0 ? 0 : errno;
}
int posix_fallocate64(int fd, off_t at, off_t length) __attribute__((alias("posix_fallocate")));

/* Descriptors come and go: what was known of a number is forgotten at both ends. */
static int opened(int fd, int flags) {
  if (fd >= 0) {
    forget(fd);
    if (flags & O_TRUNC) {
      struct file *f = file_of(fd);
      if (f) {
        pthread_mutex_lock(&f->lock);
        mark_shrunk(f, 0);
        pthread_mutex_unlock(&f->lock);
      }
    }
  }
  return fd;
}

#define MODE(flags)                                                \
  mode_t mode = 0;                                                 \
  if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {   \
    va_list list;                                                  \
    va_start(list, flags);                                         \
    mode = va_arg(list, mode_t);                                   \
    va_end(list);                                                  \
  }

int open(const char *path, int flags, ...) {
  MODE(flags)
  return opened(syscall(SYS_openat, AT_FDCWD, path, flags, mode), flags);
}
int openat(int at, const char *path, int flags, ...) {
  MODE(flags)
  return opened(syscall(SYS_openat, at, path, flags, mode), flags);
}
int creat(const char *path, mode_t mode) {
  int flags = O_WRONLY | O_CREAT | O_TRUNC;
  return opened(syscall(SYS_openat, AT_FDCWD, path, flags, mode), flags);
}
int open64(const char *path, int flags, ...) __attribute__((alias("open")));
int openat64(int at, const char *path, int flags, ...) __attribute__((alias("openat")));
int creat64(const char *path, mode_t mode) __attribute__((alias("creat")));

int close(int fd) {
  forget(fd);
  return syscall(SYS_close, fd);
}
int close_range(unsigned from, unsigned to, int flags) {
  for (unsigned fd = from; fd <= to && fd < FDS; fd++) forget(fd);
  return syscall(SYS_close_range, from, to, flags);
}
int dup2(int from, int to) {
  forget(to);
  return from == to ? to : syscall(SYS_dup3, from, to, 0);
}
int dup3(int from, int to, int flags) {
  forget(to);
  return syscall(SYS_dup3, from, to, flags);
}

/* Streams of the C library write past the calls above (RocksDB's info log is one). */
#include <dlfcn.h>
FILE *fopen(const char *path, const char *mode) {
  static FILE *(*next)(const char *, const char *);
  if (!next) next = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen");
  FILE *stream = next(path, mode);
  if (stream && on) {
    forget(fileno(stream));
    if (mode[0] != 'r' || strchr(mode, '+')) mark_whole(fileno(stream));
  }
  return stream;
}
FILE *fopen64(const char *path, const char *mode) __attribute__((alias("fopen")));
FILE *fdopen(int fd, const char *mode) {
  static FILE *(*next)(int, const char *);
  if (!next) next = (FILE * (*)(int, const char *)) dlsym(RTLD_NEXT, "fdopen");
  if (on) mark_whole(fd);
  return next(fd, mode);
}
int fclose(FILE *stream) {
  static int (*next)(FILE *);
  if (!next) next = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
  int fd = fileno(stream);
  if (on && fd >= 0) mark_whole(fd); /* its last buffer goes out now */
  forget(fd);
  return next(stream);
}
