/* The best top_k of a list in a heap whose root is the worst of them: shared by all instruction
 * sets, since what can be vectorized is only the search for the few entries that enter it. */
#ifndef KANDIGA_TOP_K_HEAP_H
#define KANDIGA_TOP_K_HEAP_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* NaN ranks as -inf, so that this is a total order and selection always ends. */
static inline float rank_of(float logit) {
    return isnan(logit) ? -INFINITY : logit;
}

static inline int ranks_before(const float* logits, int32_t a, int32_t b) {
    const float x = rank_of(logits[a]);
    const float y = rank_of(logits[b]);
    return x > y || (x == y && a < b);
}

static inline void sift_down(const float* logits, int32_t* heap, size_t size, size_t at) {
    const int32_t moved = heap[at];
    for (size_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && ranks_before(logits, heap[child], heap[child + 1])) {
            child++;
        }
        if (!ranks_before(logits, moved, heap[child])) {
            break;
        }
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static inline void heap_of_first(const float* logits, int32_t* heap, size_t size) {
    for (size_t i = 0; i < size; i++) {
        heap[i] = (int32_t)i;
    }
    for (size_t i = size / 2; i-- > 0;) {
        sift_down(logits, heap, size, i);
    }
}

/* Later entries lose ties, so an entry must be larger than the root to enter. */
static inline void offer(const float* logits, int32_t* heap, size_t size, int32_t index) {
    if (ranks_before(logits, index, heap[0])) {
        heap[0] = index;
        sift_down(logits, heap, size, 0);
    }
}

static inline void sort_best_first(const float* logits, int32_t* heap, size_t size) {
    for (; size > 1; size--) {
        const int32_t worst = heap[0];
        heap[0] = heap[size - 1];
        heap[size - 1] = worst;
        sift_down(logits, heap, size - 1, 0);
    }
}

#endif
