/* A disk that fails: loaded before libc (LD_PRELOAD), it makes one kind of call fail from the n-th
 * on; with FAIL_SHORT it writes less at a time than it is asked to.
 *
 * FAIL_CALL: pwrite, preadv, fsync, fdatasync or direct. FAIL_AT: how many succeed before.
 * FAIL_ERRNO: the error. FAIL_PATH: only files whose path contains this text.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int num_calls;

static int matches_path(int fd) {
    const char* wanted = getenv("FAIL_PATH");
    char link[64];
    char path[4096];
    ssize_t length;
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (wanted == NULL || length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, wanted) != NULL;
}

static int fails(const char* call, int fd) {
    const char* wanted = getenv("FAIL_CALL");
    const char* at = getenv("FAIL_AT");
    const char* number = getenv("FAIL_ERRNO");
    if (wanted == NULL || at == NULL || number == NULL || strcmp(call, wanted) != 0)
        return 0;
    if (!matches_path(fd) || atomic_fetch_add(&num_calls, 1) < atoi(at))
        return 0;
    errno = atoi(number);
    return 1;
}

ssize_t pwrite64(int fd, const void* data, size_t count, off64_t offset) {
    static ssize_t (*real)(int, const void*, size_t, off64_t);
    if (fails("pwrite", fd))
        return -1;
    if (real == NULL)
        *(void**)&real = dlsym(RTLD_NEXT, "pwrite64");
    /* As a nearly full disk does, and a signal: less than what was asked for, and after a direct
     * write a rest that begins anywhere. */
    return real(fd, data, getenv("FAIL_SHORT") != NULL && count > 50000 ? 50000 : count, offset);
}

/* What os.preadv of CPython calls. */
ssize_t preadv64v2(int fd, const struct iovec* parts, int num_parts, off64_t offset, int flags) {
    static ssize_t (*real)(int, const struct iovec*, int, off64_t, int);
    if (fails("preadv", fd))
        return -1;
    if (real == NULL)
        *(void**)&real = dlsym(RTLD_NEXT, "preadv64v2");
    return real(fd, parts, num_parts, offset, flags);
}

int fsync(int fd) {
    static int (*real)(int);
    if (fails("fsync", fd))
        return -1;
    if (real == NULL)
        *(void**)&real = dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (fails("fdatasync", fd))
        return -1;
    if (real == NULL)
        *(void**)&real = dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
