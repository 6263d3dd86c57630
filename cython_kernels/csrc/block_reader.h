/* Reads of whole blocks of files into memory, many under way at once. One caller at a time. */
#ifndef KANDIGA_BLOCK_READER_H
#define KANDIGA_BLOCK_READER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int fd;
    int64_t offset;
    void* address;
    size_t length;
    uint64_t tag;
} kandiga_block_read;

typedef struct {
    uint64_t tag;
    int64_t result; /* bytes read, possibly fewer than wanted, or -errno */
} kandiga_block_done;

typedef struct kandiga_block_reader kandiga_block_reader;

/* NULL when memory or threads are refused; num_threads are not used where the kernel has a queue.
 */
kandiga_block_reader* kandiga_block_reader_open(int num_threads, int use_queue);
int kandiga_block_reader_has_queue(const kandiga_block_reader* reader);
/* The most reads that may be under way. */
size_t kandiga_block_reader_capacity(const kandiga_block_reader* reader);
/* Starts reads, which with those under way are at most the capacity; 0, or -errno and none of the
   reads that are left over was started: *num_started says how many were. */
int kandiga_block_reader_start(kandiga_block_reader* reader, const kandiga_block_read* reads,
                               size_t num_reads, size_t* num_started);
/* Waits until at least `least` of those under way are done; how many are in done[max_done], or
   -errno. */
int64_t kandiga_block_reader_wait(kandiga_block_reader* reader, kandiga_block_done* done,
                                  size_t max_done, size_t least);
/* Nothing may be under way. */
void kandiga_block_reader_close(kandiga_block_reader* reader);

/* A queue of the kernel's own (io_uring); NULL where there is none or it is forbidden. */
typedef struct kandiga_kernel_queue kandiga_kernel_queue;
kandiga_kernel_queue* kandiga_kernel_queue_open(size_t capacity);
int kandiga_kernel_queue_start(kandiga_kernel_queue* queue, const kandiga_block_read* reads,
                               size_t num_reads, size_t* num_started);
int64_t kandiga_kernel_queue_wait(kandiga_kernel_queue* queue, kandiga_block_done* done,
                                  size_t max_done, size_t least);
void kandiga_kernel_queue_close(kandiga_kernel_queue* queue);

#endif
