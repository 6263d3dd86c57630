#ifndef KANDIGA_TIME_SPLIT_H
#define KANDIGA_TIME_SPLIT_H

#include <stdint.h>

/*
 * What the calling thread's kernels spend their time on. Time inside a kernel is added to the label
 * that the thread has set; time outside of kernels is nobody's. All of it is the thread's own, so
 * two engines in two threads do not mix their figures.
 *
 * Two clock readings a parallel region and one store a label: about 50 ns each on x86-64, which is
 * why it is always on.
 */
enum kandiga_time {
    KANDIGA_TIME_DENSE,   /* embedding, norms, projections, shared experts, head */
    KANDIGA_TIME_ROUTING, /* router matrix and top-k */
    KANDIGA_TIME_EXPERTS, /* routed experts and their sum */
    KANDIGA_TIME_ATTENTION,
    KANDIGA_TIME_GATED_DELTA,
    KANDIGA_TIME_KV_CODING, /* of the compressed KV cache, without attention over it */
    KANDIGA_NUM_TIMES
};

/* What this thread does from here on, also in the middle of a region. */
void kandiga_time_label(enum kandiga_time label);
/* Around work; regions nest, the outermost counts. parallel_for does this itself. */
void kandiga_time_begin(void);
void kandiga_time_end(void);
/* Nanoseconds of each label since the thread began. */
void kandiga_time_totals(int64_t totals[KANDIGA_NUM_TIMES]);

#endif
