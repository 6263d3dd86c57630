/* Preloaded into a process: lets reads of .kexp files go wrong as the environment says.

   FAULT        short   returns fewer bytes than were read
                eintr   every second call is interrupted by a signal before it read anything
                eio     the disk fails where a read covers byte FAULT_OFFSET
                direct  O_DIRECT is accepted by open and refused by reads
                open    O_DIRECT is refused by open
                access  open is not permitted
   FAULT_FILE   end of the names that are meant */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHORT_BYTES 5000

static int fault_is(const char* name) {
    const char* fault = getenv("FAULT");
    return fault && strcmp(fault, name) == 0;
}

static int is_meant(const char* path) {
    const char* end = getenv("FAULT_FILE");
    size_t length = strlen(path), end_length = end ? strlen(end) : 0;
    return end && length >= end_length && strcmp(path + length - end_length, end) == 0;
}

static int is_meant_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_meant(path);
}

static int fails(int fd, size_t wanted, off64_t offset) {
    static _Thread_local int calls;
    long bad = atol(getenv("FAULT_OFFSET") ? getenv("FAULT_OFFSET") : "0");
    if (fault_is("eintr") && calls++ % 2 == 0)
        errno = EINTR;
    else if (fault_is("eio") && offset <= bad && bad < offset + (off64_t)wanted)
        errno = EIO;
    else if (fault_is("direct") && fcntl(fd, F_GETFL) & O_DIRECT)
        errno = EINVAL;
    else
        return 0;
    return 1;
}

ssize_t preadv64(int fd, const struct iovec* parts, int count, off64_t offset) {
    size_t wanted = 0;
    for (int i = 0; i < count; i++)
        wanted += parts[i].iov_len;
    int meant = is_meant_fd(fd);
    if (meant && fails(fd, wanted, offset))
        return -1;
    ssize_t done = syscall(SYS_preadv, fd, parts, count, (long)offset, 0L);
    return meant && fault_is("short") && done > SHORT_BYTES ? SHORT_BYTES : done;
}

ssize_t preadv64v2(int fd, const struct iovec* parts, int count, off64_t offset, int flags) {
    (void)flags;
    return preadv64(fd, parts, count, offset);
}

ssize_t pread64(int fd, void* buffer, size_t wanted, off64_t offset) {
    struct iovec part = {buffer, wanted};
    return preadv64(fd, &part, 1, offset);
}

/* What has to be read cannot be found in memory. */
int mincore(void* start, size_t length, unsigned char* answers) {
    long result = syscall(SYS_mincore, start, length, answers);
    if (fault_is("eio") && result == 0)
        memset(answers, 0, (length + 4095) / 4096);
    return (int)result;
}

int open64(const char* path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    if (is_meant(path) && fault_is("open") && flags & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    if (is_meant(path) && fault_is("access")) {
        errno = EACCES;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
