/* io_uring by its three system calls: what is needed of it is less than its library. */
#define _GNU_SOURCE
#include "block_reader.h"
#include <errno.h>
#include <stdlib.h>

#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__NR_io_uring_setup)
#define HAVE_IO_URING
#endif
#endif
#endif

#if defined(HAVE_IO_URING)

#include <string.h>

struct kandiga_kernel_queue {
    int fd;
    unsigned char* rings;
    size_t rings_bytes;
    struct io_uring_sqe* entries;
    size_t entries_bytes;
    unsigned* submit_tail;
    unsigned* submit_index;
    unsigned submit_mask;
    unsigned* done_head;
    unsigned* done_tail;
    unsigned done_mask;
    struct io_uring_cqe* done;
};

static int enter(const kandiga_kernel_queue* queue, size_t num_submit, size_t least) {
    long count = syscall(__NR_io_uring_enter, queue->fd, (unsigned)num_submit, (unsigned)least,
                         least || !num_submit ? IORING_ENTER_GETEVENTS : 0U, NULL, (size_t)0);
    return count < 0 ? -errno : (int)count;
}

static void* shared(size_t num_bytes, int fd, off_t what) {
    void* memory =
        mmap(NULL, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
    return memory == MAP_FAILED ? NULL : memory;
}

static int map_rings(kandiga_kernel_queue* queue, const struct io_uring_params* params) {
    size_t submit_bytes = params->sq_off.array + params->sq_entries * sizeof(unsigned);
    size_t done_bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    queue->rings_bytes = submit_bytes > done_bytes ? submit_bytes : done_bytes;
    queue->rings = shared(queue->rings_bytes, queue->fd, (off_t)IORING_OFF_SQ_RING);
    queue->entries_bytes = params->sq_entries * sizeof(struct io_uring_sqe);
    queue->entries = shared(queue->entries_bytes, queue->fd, (off_t)IORING_OFF_SQES);
    if (!queue->rings || !queue->entries)
        return 0;
    queue->submit_tail = (unsigned*)(void*)(queue->rings + params->sq_off.tail);
    queue->submit_index = (unsigned*)(void*)(queue->rings + params->sq_off.array);
    queue->submit_mask = *(unsigned*)(void*)(queue->rings + params->sq_off.ring_mask);
    queue->done_head = (unsigned*)(void*)(queue->rings + params->cq_off.head);
    queue->done_tail = (unsigned*)(void*)(queue->rings + params->cq_off.tail);
    queue->done_mask = *(unsigned*)(void*)(queue->rings + params->cq_off.ring_mask);
    queue->done = (struct io_uring_cqe*)(void*)(queue->rings + params->cq_off.cqes);
    return 1;
}

kandiga_kernel_queue* kandiga_kernel_queue_open(size_t capacity) {
    kandiga_kernel_queue* queue = calloc(1, sizeof *queue);
    if (!queue)
        return NULL;
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    queue->fd = (int)syscall(__NR_io_uring_setup, (unsigned)capacity, &params);
    /* One mapping for both rings came with Linux 5.4, plain reads with 5.6, and with 5.7 (fast
       poll) a queue that does not need a thread for each read. */
    unsigned wanted = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL;
    if (queue->fd < 0 || (params.features & wanted) != wanted || !map_rings(queue, &params)) {
        kandiga_kernel_queue_close(queue);
        return NULL;
    }
    return queue;
}

int kandiga_kernel_queue_start(kandiga_kernel_queue* queue, const kandiga_block_read* reads,
                               size_t num_reads, size_t* num_started) {
    unsigned tail = *queue->submit_tail;
    for (size_t i = 0; i < num_reads; i++, tail++) {
        unsigned index = tail & queue->submit_mask;
        struct io_uring_sqe* entry = &queue->entries[index];
        memset(entry, 0, sizeof *entry);
        entry->opcode = IORING_OP_READ;
        entry->fd = reads[i].fd;
        entry->addr = (uint64_t)(uintptr_t)reads[i].address;
        entry->len = (uint32_t)reads[i].length;
        entry->off = (uint64_t)reads[i].offset;
        entry->user_data = reads[i].tag;
        queue->submit_index[index] = index;
    }
    __atomic_store_n(queue->submit_tail, tail, __ATOMIC_RELEASE);
    *num_started = 0;
    while (*num_started < num_reads) {
        int count = enter(queue, num_reads - *num_started, 0);
        if (count == -EINTR || count == -EAGAIN)
            continue;
        if (count <= 0) {
            /* Entries that the kernel has not taken are taken back. */
            unsigned left = (unsigned)(num_reads - *num_started);
            __atomic_store_n(queue->submit_tail, tail - left, __ATOMIC_RELEASE);
            return count < 0 ? count : -EIO;
        }
        *num_started += (size_t)count;
    }
    return 0;
}

int64_t kandiga_kernel_queue_wait(kandiga_kernel_queue* queue, kandiga_block_done* done,
                                  size_t max_done, size_t least) {
    size_t count = 0;
    for (;;) {
        unsigned head = *queue->done_head;
        unsigned tail = __atomic_load_n(queue->done_tail, __ATOMIC_ACQUIRE);
        for (; head != tail && count < max_done; head++) {
            const struct io_uring_cqe* entry = &queue->done[head & queue->done_mask];
            done[count++] = (kandiga_block_done){entry->user_data, entry->res};
        }
        __atomic_store_n(queue->done_head, head, __ATOMIC_RELEASE);
        if (count >= least)
            return (int64_t)count;
        int error = enter(queue, 0, least - count);
        if (error < 0 && error != -EINTR)
            return error;
    }
}

void kandiga_kernel_queue_close(kandiga_kernel_queue* queue) {
    if (queue->entries)
        munmap(queue->entries, queue->entries_bytes);
    if (queue->rings)
        munmap(queue->rings, queue->rings_bytes);
    if (queue->fd >= 0)
        close(queue->fd);
    free(queue);
}

#else

kandiga_kernel_queue* kandiga_kernel_queue_open(size_t capacity) {
    (void)capacity;
    return NULL;
}

int kandiga_kernel_queue_start(kandiga_kernel_queue* queue, const kandiga_block_read* reads,
                               size_t num_reads, size_t* num_started) {
    (void)queue, (void)reads, (void)num_reads;
    *num_started = 0;
    return -ENOSYS;
}

int64_t kandiga_kernel_queue_wait(kandiga_kernel_queue* queue, kandiga_block_done* done,
                                  size_t max_done, size_t least) {
    (void)queue, (void)done, (void)max_done, (void)least;
    return -ENOSYS;
}

void kandiga_kernel_queue_close(kandiga_kernel_queue* queue) {
    (void)queue;
}

#endif
