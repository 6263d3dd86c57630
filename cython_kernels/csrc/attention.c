/* The plain KV cache, and attention over it split by heads, rows and key ranges. */
#include "vector_items.h"

#include <math.h>
#include <string.h>

/* Pieces to cut a call into: enough for any machine's cores, few enough to merge cheaply. */
enum { WANTED_ITEMS = 64, MAX_SPLITS = 32 };
/* Of the keys of a piece: at least so many, a multiple of the kernels' block. */
enum { MIN_KEYS_PER_SPLIT = 512, KEY_ALIGN = 64 };

struct append_job {
    const struct rows* x;
    void* cache;
    ptrdiff_t head_stride, position_stride;
    int half_cache;
    size_t offset, tokens_per_item;
};

static void run_append_item(void* context, size_t item) {
    const struct append_job* job = context;
    const size_t begin = item * job->tokens_per_item;
    const size_t end = min_size(begin + job->tokens_per_item, job->x->n0);
    for (size_t head = 0; head < job->x->n1; head++) {
        for (size_t token = begin; token < end; token++) {
            const ptrdiff_t at = (ptrdiff_t)head * job->head_stride +
                                 (ptrdiff_t)(job->offset + token) * job->position_stride;
            const float* row = row_at(job->x, token, head);
            if (job->half_cache) {
                kandiga_vector.store_half(row, (uint16_t*)job->cache + at, job->x->width);
            } else {
                memcpy((float*)job->cache + at, row, job->x->width * sizeof(float));
            }
        }
    }
}

void vector_kv_append(const struct rows* x, void* cache, ptrdiff_t head_stride,
                      ptrdiff_t position_stride, int half_cache, size_t offset) {
    const size_t floats_per_token = x->n1 * x->width;
    struct append_job job = {.x = x,
                             .cache = cache,
                             .head_stride = head_stride,
                             .position_stride = position_stride,
                             .half_cache = half_cache,
                             .offset = offset,
                             .tokens_per_item = ceil_div(FLOATS_PER_ITEM, floats_per_token + 1)};
    kandiga_parallel_for(run_append_item, &job, ceil_div(x->n0, job.tokens_per_item));
}

struct attention_job {
    const struct attention_args* args;
    const struct rows* out;
    size_t num_rows, num_tiles; /* rows and tiles of one KV head */
    size_t num_splits, keys_per_split;
    float *acc, *max, *sum; /* (num_splits, num_kv_heads, num_rows[, head_dim]) */
};

/* One tile of rows over all its keys, straight into out. */
static void run_attention_tile(void* context, size_t item) {
    const struct attention_job* job = context;
    const struct attention_args* args = job->args;
    const size_t kv_head = item / job->num_tiles;
    const size_t begin = item % job->num_tiles * ATTENTION_TILE_ROWS;
    const size_t end = min_size(begin + ATTENTION_TILE_ROWS, job->num_rows);
    float max[ATTENTION_TILE_ROWS];
    float sum[ATTENTION_TILE_ROWS];
    const struct attention_partial partial = {.acc = row_at(job->out, 0, kv_head * args->group),
                                              .token_stride = job->out->stride0,
                                              .head_stride = job->out->stride1,
                                              .max = max,
                                              .sum = sum};
    kandiga_vector.attention(args, kv_head, begin, end, 0, args->kv_len, &partial);
    for (size_t row = begin; row < end; row++) {
        float* out = row_at(job->out, row / args->group, kv_head * args->group + row % args->group);
        const float factor = 1.0f / sum[row - begin];
        for (size_t d = 0; d < args->head_dim; d++) {
            out[d] *= factor;
        }
    }
}

/* One tile of rows over one range of keys, into scratch. */
static void run_attention_split(void* context, size_t item) {
    const struct attention_job* job = context;
    const struct attention_args* args = job->args;
    const size_t split = item % job->num_splits;
    const size_t tile = item / job->num_splits % job->num_tiles;
    const size_t kv_head = item / job->num_splits / job->num_tiles;
    const size_t begin = tile * ATTENTION_TILE_ROWS;
    const size_t first_row = (split * args->num_kv_heads + kv_head) * job->num_rows;
    const struct attention_partial partial = {.acc = job->acc + first_row * args->head_dim,
                                              .token_stride =
                                                  (ptrdiff_t)(args->group * args->head_dim),
                                              .head_stride = (ptrdiff_t)args->head_dim,
                                              .max = job->max + first_row + begin,
                                              .sum = job->sum + first_row + begin};
    kandiga_vector.attention(args, kv_head, begin,
                             min_size(begin + ATTENTION_TILE_ROWS, job->num_rows),
                             split * job->keys_per_split,
                             min_size((split + 1) * job->keys_per_split, args->kv_len), &partial);
}

/* Sum the ranges of one row, always in the same order. */
static void run_attention_merge(void* context, size_t item) {
    const struct attention_job* job = context;
    const struct attention_args* args = job->args;
    const size_t kv_head = item / job->num_rows;
    const size_t row = item % job->num_rows;
    const size_t stride = args->num_kv_heads * job->num_rows;
    const size_t at = kv_head * job->num_rows + row;
    float* out = row_at(job->out, row / args->group, kv_head * args->group + row % args->group);
    float max = -INFINITY;
    for (size_t split = 0; split < job->num_splits; split++) {
        max = fmaxf(max, job->max[split * stride + at]);
    }
    float sum = 0.0f;
    float weights[MAX_SPLITS];
    for (size_t split = 0; split < job->num_splits; split++) {
        const size_t i = split * stride + at;
        weights[split] = job->sum[i] != 0.0f ? expf(job->max[i] - max) : 0.0f;
        sum += weights[split] * job->sum[i];
    }
    memset(out, 0, args->head_dim * sizeof(float));
    for (size_t split = 0; split < job->num_splits; split++) {
        kandiga_vector.scale_add(job->acc + (split * stride + at) * args->head_dim,
                                 weights[split] / sum, out, args->head_dim);
    }
}

/* Key ranges to split into, so that a long context keeps every thread busy whatever the number of
 * KV heads. Depends on the shapes only: the result is the same for any number of threads. */
static size_t attention_splits(const struct attention_args* args, size_t num_tiles) {
    const size_t by_keys = args->kv_len / MIN_KEYS_PER_SPLIT;
    const size_t by_items = WANTED_ITEMS / (args->num_kv_heads * num_tiles);
    return min_size(min_size(by_keys, by_items), MAX_SPLITS);
}

static void attention_in_ranges(struct attention_job* job, size_t splits, size_t multiply_adds) {
    const struct attention_args* args = job->args;
    const size_t all_rows = job->num_rows * args->num_kv_heads;
    const size_t keys = ceil_div(args->kv_len, splits);
    job->keys_per_split = ceil_div(keys, KEY_ALIGN) * KEY_ALIGN;
    job->num_splits = ceil_div(args->kv_len, job->keys_per_split);
    job->max = job->acc + job->num_splits * all_rows * args->head_dim;
    job->sum = job->max + job->num_splits * all_rows;
    run_items(run_attention_split, job, args->num_kv_heads * job->num_tiles * job->num_splits,
              multiply_adds);
    run_items(run_attention_merge, job, all_rows, job->num_splits * all_rows * args->head_dim);
}

int vector_attention(const struct attention_args* args, const struct rows* out) {
    const size_t num_rows = args->num_tokens * args->group;
    const size_t all_rows = num_rows * args->num_kv_heads;
    const size_t multiply_adds = 2 * all_rows * args->kv_len * args->head_dim;
    struct attention_job job = {.args = args,
                                .out = out,
                                .num_rows = num_rows,
                                .num_tiles = ceil_div(num_rows, ATTENTION_TILE_ROWS)};
    if (all_rows == 0) {
        return 0;
    }
    const size_t splits = attention_splits(args, job.num_tiles);
    if (splits < 2) {
        run_items(run_attention_tile, &job, args->num_kv_heads * job.num_tiles, multiply_adds);
        return 0;
    }
    kandiga_pool_hold();
    job.acc = kandiga_pool_scratch(splits * all_rows * (args->head_dim + 2) * sizeof(float));
    if (job.acc) {
        attention_in_ranges(&job, splits, multiply_adds);
    }
    kandiga_pool_release();
    return job.acc ? 0 : -1;
}
