/* The gated delta rule split by rows of the heads' states, its convolution by channels. */
#include "vector_items.h"

#include <string.h>

enum { GATED_DELTA_ROWS_PER_ITEM = 32, CONV_CHANNELS_PER_ITEM = 512 };

struct gated_delta_job {
    const struct gated_delta_args* args;
    size_t items_per_head;
};

static void run_gated_delta_item(void* context, size_t item) {
    const struct gated_delta_job* job = context;
    const size_t begin = item % job->items_per_head * GATED_DELTA_ROWS_PER_ITEM;
    kandiga_vector.gated_delta(job->args, item / job->items_per_head, begin,
                               min_size(begin + GATED_DELTA_ROWS_PER_ITEM, job->args->value_dim));
}

void vector_gated_delta(const struct gated_delta_args* args) {
    struct gated_delta_job job = {
        .args = args, .items_per_head = ceil_div(args->value_dim, GATED_DELTA_ROWS_PER_ITEM)};
    run_items(run_gated_delta_item, &job, args->num_value_heads * job.items_per_head,
              4 * args->num_tokens * args->num_value_heads * args->value_dim * args->key_dim);
}

void vector_causal_conv_advance(const struct causal_conv_args* args, size_t begin, size_t end) {
    const size_t history = args->taps - 1;
    /* Ascending, so that each row is read before it is overwritten. */
    for (size_t i = 0; i < history; i++) {
        const size_t from = args->num_tokens + i; /* among the old state and x, in this order */
        const float* inputs = from < history
                                  ? args->state + from * args->channels
                                  : args->x + (ptrdiff_t)(from - history) * args->x_token_stride;
        memmove(args->state + i * args->channels + begin, inputs + begin,
                (end - begin) * sizeof(float));
    }
}

static void run_causal_conv_item(void* context, size_t item) {
    const struct causal_conv_args* args = context;
    const size_t begin = item * CONV_CHANNELS_PER_ITEM;
    const size_t end = min_size(begin + CONV_CHANNELS_PER_ITEM, args->channels);
    kandiga_vector.causal_conv(args, 0, args->num_tokens, begin, end, args->out + begin,
                               (size_t)args->out_token_stride);
    vector_causal_conv_advance(args, begin, end);
}

void vector_causal_conv(const struct causal_conv_args* args) {
    struct causal_conv_args job = *args;
    run_items(run_causal_conv_item, &job, ceil_div(args->channels, CONV_CHANNELS_PER_ITEM),
              args->num_tokens * args->channels * (args->taps + 8));
}
