/* How the vector calls walk strided rows and share work over the pool. */
#ifndef KANDIGA_VECTOR_ITEMS_H
#define KANDIGA_VECTOR_ITEMS_H

#include "dispatch.h"
#include "threadpool.h"
#include "time_split.h"
#include "vector.h"

#include <math.h>

/* A piece of parallel work should outlast waking a thread (a few microseconds): this many floats
 * streamed, or multiply-adds done. */
enum { FLOATS_PER_ITEM = 16384, MULTIPLY_ADDS_PER_ITEM = 65536 };

static inline size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline size_t ceil_div(size_t a, size_t b) {
    return (a + b - 1) / b;
}

static inline float* row_at(const struct rows* rows, size_t i0, size_t i1) {
    return rows->data + (ptrdiff_t)i0 * rows->stride0 + (ptrdiff_t)i1 * rows->stride1;
}

/* Decay and step of the gated delta rule, of one token and head. */
static inline float delta_decay(float a, float a_log, float dt_bias) {
    const float x = a + dt_bias;
    const float softplus = fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
    return expf(-expf(a_log) * softplus);
}

static inline float delta_beta(float b) {
    return 1.0f / (1.0f + expf(-b));
}

/* Waking the pool for work that one thread finishes sooner would slow decoding down. */
static inline void run_items(void (*run)(void* context, size_t item), void* context,
                             size_t num_items, size_t multiply_adds) {
    if (multiply_adds >= 2 * MULTIPLY_ADDS_PER_ITEM) {
        kandiga_parallel_for(run, context, num_items);
        return;
    }
    kandiga_time_begin();
    for (size_t item = 0; item < num_items; item++) {
        run(context, item);
    }
    kandiga_time_end();
}

#endif
