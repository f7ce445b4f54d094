/* Refuses what some file systems cannot do, for files below the directory $SHIM_UNDER.

   $SHIM has words such as "fsync_folder=22 flock=37": which call fails with which errno. "rewrite" is
   a pwrite before the end of the file, "statvfs" with 0 answers zeros, "size" is how large a file
   may get, which a seek tells as on FAT, but not with "seek_any=1", "write_once" refuses the third
   block of sound and no other. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static long value(const char *word) {
    const char *all = getenv("SHIM"), *at = all;
    size_t length = strlen(word);
    while (at && (at = strstr(at, word))) {
        if ((at == all || at[-1] == ' ') && at[length] == '=') return atol(at + length + 1);
        at += length;
    }
    return -1;
}

static int below(const char *path) {
    const char *under = getenv("SHIM_UNDER");
    return under && !strncmp(path, under, strlen(under));
}

static int ours(int fd) {
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int refused(const char *word, int fd) {
    long number = value(word);
    if (number < 0 || !ours(fd)) return 0;
    errno = number;
    return 1;
}

static int is_folder(int fd) {
    struct stat st;
    return !fstat(fd, &st) && S_ISDIR(st.st_mode);
}

#define REAL(type, name, ...) type (*real)(__VA_ARGS__) = dlsym(RTLD_NEXT, name)

int fsync(int fd) {
    REAL(int, "fsync", int);
    return refused(is_folder(fd) ? "fsync_folder" : "fsync", fd) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return refused("fdatasync", fd) ? -1 : real(fd);
}

int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    return refused("flock", fd) ? -1 : real(fd, operation);
}

int fchmod(int fd, mode_t mode) {
    REAL(int, "fchmod", int, mode_t);
    return refused("fchmod", fd) ? -1 : real(fd, mode);
}

int fchown(int fd, uid_t user, gid_t group) {
    REAL(int, "fchown", int, uid_t, gid_t);
    return refused("fchown", fd) ? -1 : real(fd, user, group);
}

int renameat(int from, const char *old, int to, const char *new) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return refused("rename", from) ? -1 : real(from, old, to, new);
}

off64_t lseek64(int fd, off64_t offset, int whence) {
    REAL(off64_t, "lseek64", int, off64_t, int);
    if (refused("lseek", fd)) return -1;
    if (value("size") >= 0 && whence == SEEK_SET && offset > value("size") && ours(fd) &&
        value("seek_any") < 0) {
        errno = EINVAL;
        return -1;
    }
    return real(fd, offset, whence);
}
off_t lseek(int fd, off_t offset, int whence) { return lseek64(fd, offset, whence); }

static ssize_t fit(int fd, size_t count, off64_t at) {
    long size = value("size");
    if (size < 0 || at + (long)count <= size || !ours(fd)) return count;
    if (at >= size) {
        errno = EFBIG;
        return -1;
    }
    return size - at;
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    struct stat st;
    if (!fstat(fd, &st) && at < st.st_size && refused("rewrite", fd)) return -1;
    ssize_t some = fit(fd, count, at);
    return some < 0 ? -1 : real(fd, data, some, at);
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t at) {
    return pwrite64(fd, data, count, at);
}

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    off64_t (*seek)(int, off64_t, int) = dlsym(RTLD_NEXT, "lseek64");
    ssize_t some = fit(fd, count, seek(fd, 0, SEEK_CUR));
    static int sound;
    if (value("write_once") >= 0 && count > 500 && ours(fd) && ++sound == 3) {
        errno = value("write_once");
        return -1;
    }
    return some < 0 || refused("write", fd) ? -1 : real(fd, data, some);
}

int statvfs64(const char *path, struct statvfs64 *about) {
    REAL(int, "statvfs64", const char *, struct statvfs64 *);
    long number = value("statvfs");
    if (number < 0 || !below(path)) return real(path, about);
    memset(about, 0, sizeof *about);
    errno = number;
    return number ? -1 : 0;
}
int statvfs(const char *path, struct statvfs *about) {
    return statvfs64(path, (struct statvfs64 *)about);
}
