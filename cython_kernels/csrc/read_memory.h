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
 * Load every byte of ranges of memory once, each range by one thread of the pool, and return the
 * bytes' exclusive or in words of 64 bits. For measuring how fast memory can be read: the loop does
 * nothing else.
 *
 * A start is a multiple of 64; what lies beyond the last whole 2 KiB of a range is left out.
 */
uint64_t kandiga_read_ranges(const uint64_t* starts, const uint64_t* lengths, size_t num_ranges,
                             enum kandiga_read_order order);

#endif
