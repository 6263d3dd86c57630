/* Rotary position embedding: angles once a token, then every head. */
#include "vector_items.h"

#include <math.h>

struct rope_job {
    const struct rows* x;
    const float* inv_freq;
    size_t pairs, tokens_per_item;
    int64_t offset;
    int traditional;
    float scale;
};

static void rope_token(const struct rope_job* job, size_t token) {
    float cosines[ROPE_MAX_PAIRS];
    float sines[ROPE_MAX_PAIRS];
    /* The angle is rounded to float32 as the models' own code rounds it: at position 100000 that
     * rounding is far larger than the error of cosf, and part of what the weights were trained
     * with. */
    const float position = (float)(job->offset + (int64_t)token) * job->scale;
    for (size_t i = 0; i < job->pairs; i++) {
        const float angle = position * job->inv_freq[i];
        cosines[i] = cosf(angle);
        sines[i] = sinf(angle);
    }
    for (size_t head = 0; head < job->x->n1; head++) {
        kandiga_vector.rope(row_at(job->x, token, head), cosines, sines, job->pairs,
                            job->traditional);
    }
}

static void run_rope_item(void* context, size_t item) {
    const struct rope_job* job = context;
    const size_t end = min_size((item + 1) * job->tokens_per_item, job->x->n0);
    for (size_t token = item * job->tokens_per_item; token < end; token++) {
        rope_token(job, token);
    }
}

void vector_rope(const struct rows* x, const float* inv_freq, size_t pairs, int64_t offset,
                 int traditional, float scale) {
    const size_t floats_per_token = 2 * pairs * (x->n1 + 1);
    struct rope_job job = {.x = x,
                           .inv_freq = inv_freq,
                           .pairs = pairs,
                           .tokens_per_item = ceil_div(FLOATS_PER_ITEM, floats_per_token + 1),
                           .offset = offset,
                           .traditional = traditional,
                           .scale = scale};
    kandiga_parallel_for(run_rope_item, &job, ceil_div(x->n0, job.tokens_per_item));
}
