#ifndef KANDIGA_READ_MEMORY_H
#define KANDIGA_READ_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* Ways through memory; which is the fastest depends on the machine and on the size of its pages. */
enum kandiga_read_order {
    KANDIGA_READ_ONE_STREAM,
    KANDIGA_READ_TWO_STREAMS_PREFETCHED,
    KANDIGA_READ_FOUR_STREAMS,
    KANDIGA_NUM_READ_ORDERS
};

/*
 * Load every byte once, each thread of the pool a contiguous share, and return the bytes' exclusive
 * or in words of 64 bits. For measuring how fast memory can be read: the loop does nothing else.
 *
 * start is a multiple of 64; what lies beyond the last whole 2 KiB of a share is left out.
 */
uint64_t kandiga_read_memory(const void* start, size_t num_bytes, enum kandiga_read_order order);

#endif
