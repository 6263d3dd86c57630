#include "vector.h"

#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "threadpool.h"

/* A piece of parallel work should outlast waking a thread (a few microseconds): this many floats
 * streamed, or multiply-adds done. */
enum { FLOATS_PER_ITEM = 16384, MULTIPLY_ADDS_PER_ITEM = 65536 };

enum {
    ATTENTION_WANTED_ITEMS =
        64, /* pieces to aim at: enough for any machine's cores, few enough to merge cheaply */
    ATTENTION_MAX_SPLITS = 32,
    ATTENTION_MIN_KEYS_PER_SPLIT = 512,
    ATTENTION_KEY_ALIGN = 64,
};
enum { GATED_DELTA_ROWS_PER_ITEM = 32, CONV_CHANNELS_PER_ITEM = 512 };

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t ceil_div(size_t a, size_t b) {
    return (a + b - 1) / b;
}

static float* row_at(const struct rows* rows, size_t i0, size_t i1) {
    return rows->data + (ptrdiff_t)i0 * rows->stride0 + (ptrdiff_t)i1 * rows->stride1;
}

/* Waking the pool for work that one thread finishes sooner would slow decoding down. */
static void run_items(void (*run)(void* context, size_t item), void* context, size_t num_items,
                      size_t multiply_adds) {
    if (multiply_adds >= 2 * MULTIPLY_ADDS_PER_ITEM) {
        kandiga_parallel_for(run, context, num_items);
        return;
    }
    for (size_t item = 0; item < num_items; item++) {
        run(context, item);
    }
}

/* ---- independent rows: norms and elementwise ---- */

struct row_job {
    void (*row)(const struct row_job* job, size_t i0, size_t i1);
    const struct rows *a, *b, *out;
    const float* weight;
    const float* weight2;
    float eps, scale;
    size_t rows_per_item;
    size_t top_k;
    enum score_mode mode;
    int32_t* indices;
    float* scores;
};

static void run_row_item(void* context, size_t item) {
    const struct row_job* job = context;
    const size_t begin = item * job->rows_per_item;
    const size_t end = min_size(begin + job->rows_per_item, job->a->n0 * job->a->n1);
    size_t i0 = begin / job->a->n1;
    size_t i1 = begin % job->a->n1;
    for (size_t row = begin; row < end; row++) {
        job->row(job, i0, i1);
        if (++i1 == job->a->n1) {
            i1 = 0;
            i0++;
        }
    }
}

static void run_rows(struct row_job job) {
    const size_t num_rows = job.a->n0 * job.a->n1;
    job.rows_per_item = ceil_div(FLOATS_PER_ITEM, job.a->width ? job.a->width : 1);
    kandiga_parallel_for(run_row_item, &job, ceil_div(num_rows, job.rows_per_item));
}

static void rms_norm_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.rms_norm(row_at(job->a, i0, i1), job->weight, job->eps, row_at(job->out, i0, i1),
                            job->a->width);
}

void vector_rms_norm(const struct rows* x, const float* weight, float eps, const struct rows* out) {
    run_rows(
        (struct row_job){.row = rms_norm_row, .a = x, .weight = weight, .eps = eps, .out = out});
}

static void add_rms_norm_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.add_rms_norm(row_at(job->a, i0, i1), row_at(job->b, i0, i1), job->weight,
                                job->eps, row_at(job->out, i0, i1), job->a->width);
}

void vector_add_rms_norm(const struct rows* x, const struct rows* delta, const float* weight,
                         float eps, const struct rows* out) {
    run_rows((struct row_job){
        .row = add_rms_norm_row, .a = x, .b = delta, .weight = weight, .eps = eps, .out = out});
}

static void rms_norm_gated_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.rms_norm_gated(row_at(job->a, i0, i1), row_at(job->b, i0, i1), job->weight,
                                  job->eps, row_at(job->out, i0, i1), job->a->width);
}

void vector_rms_norm_gated(const struct rows* x, const struct rows* gate, const float* weight,
                           float eps, const struct rows* out) {
    run_rows((struct row_job){
        .row = rms_norm_gated_row, .a = x, .b = gate, .weight = weight, .eps = eps, .out = out});
}

static void l2_normalize_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.l2_normalize(row_at(job->a, i0, i1), job->eps, job->scale, job->a->width);
}

void vector_l2_normalize(const struct rows* x, float eps, float scale) {
    run_rows((struct row_job){.row = l2_normalize_row, .a = x, .eps = eps, .scale = scale});
}

static void add_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.add(row_at(job->a, i0, i1), row_at(job->b, i0, i1), job->a->width);
}

void vector_add(const struct rows* x, const struct rows* y) {
    run_rows((struct row_job){.row = add_row, .a = x, .b = y});
}

static void silu_mul_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.silu_mul(row_at(job->a, i0, i1), row_at(job->b, i0, i1),
                            row_at(job->out, i0, i1), job->a->width);
}

void vector_silu_mul(const struct rows* gate, const struct rows* up, const struct rows* out) {
    run_rows((struct row_job){.row = silu_mul_row, .a = gate, .b = up, .out = out});
}

static void sigmoid_mul_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.sigmoid_mul(row_at(job->a, i0, i1), row_at(job->b, i0, i1),
                               row_at(job->out, i0, i1), job->a->width);
}

void vector_sigmoid_mul(const struct rows* x, const struct rows* gate, const struct rows* out) {
    run_rows((struct row_job){.row = sigmoid_mul_row, .a = x, .b = gate, .out = out});
}

static void sigmoid_scale_add_row(const struct row_job* job, size_t i0, size_t i1) {
    const float scale = 1.0f / (1.0f + expf(-*row_at(job->b, i0, i1)));
    kandiga_vector.scale_add(row_at(job->a, i0, i1), scale, row_at(job->out, i0, i1),
                             job->a->width);
}

void vector_sigmoid_scale_add(const struct rows* x, const struct rows* gate,
                              const struct rows* out) {
    run_rows((struct row_job){.row = sigmoid_scale_add_row, .a = x, .b = gate, .out = out});
}

static void exp_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.exponential(row_at(job->a, i0, i1), row_at(job->out, i0, i1), job->a->width);
}

void vector_exp(const struct rows* x, const struct rows* out) {
    run_rows((struct row_job){.row = exp_row, .a = x, .out = out});
}

static void copy_row(const struct row_job* job, size_t i0, size_t i1) {
    memcpy(row_at(job->out, i0, i1), row_at(job->a, i0, i1), job->a->width * sizeof(float));
}

void vector_copy(const struct rows* x, const struct rows* out) {
    run_rows((struct row_job){.row = copy_row, .a = x, .out = out});
}

static void gates_row(const struct row_job* job, size_t i0, size_t i1) {
    float* g = row_at(job->out, i0, i1);
    const float* a = row_at(job->a, i0, i1);
    for (size_t h = 0; h < job->a->width; h++) {
        const float x = a[h] + job->weight2[h];
        const float softplus = fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
        g[h] = expf(-expf(job->weight[h]) * softplus);
    }
}

static void sigmoid_row(const struct row_job* job, size_t i0, size_t i1) {
    float* out = row_at(job->out, i0, i1);
    const float* x = row_at(job->a, i0, i1);
    for (size_t h = 0; h < job->a->width; h++) {
        out[h] = 1.0f / (1.0f + expf(-x[h]));
    }
}

void vector_gated_delta_gates(const struct rows* a, const struct rows* b, const float* a_log,
                              const float* dt_bias, const struct rows* g_out,
                              const struct rows* beta_out) {
    run_rows((struct row_job){
        .row = gates_row, .a = a, .weight = a_log, .weight2 = dt_bias, .out = g_out});
    run_rows((struct row_job){.row = sigmoid_row, .a = b, .out = beta_out});
}

static void top_k_row(const struct row_job* job, size_t i0, size_t i1) {
    const size_t row = i0 * job->a->n1 + i1;
    kandiga_vector.top_k(row_at(job->a, i0, i1), job->a->width, job->top_k, job->mode,
                         job->indices + row * job->top_k, job->scores + row * job->top_k);
}

void vector_top_k(const struct rows* logits, size_t top_k, enum score_mode mode, int32_t* indices,
                  float* scores) {
    run_rows((struct row_job){.row = top_k_row,
                              .a = logits,
                              .top_k = top_k,
                              .mode = mode,
                              .indices = indices,
                              .scores = scores});
}

/* ---- rope ---- */

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

/* ---- KV cache ---- */

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

/* ---- attention ---- */

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
    float weights[ATTENTION_MAX_SPLITS];
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
    const size_t by_keys = args->kv_len / ATTENTION_MIN_KEYS_PER_SPLIT;
    const size_t by_items = ATTENTION_WANTED_ITEMS / (args->num_kv_heads * num_tiles);
    return min_size(min_size(by_keys, by_items), ATTENTION_MAX_SPLITS);
}

static void attention_in_ranges(struct attention_job* job, size_t splits, size_t multiply_adds) {
    const struct attention_args* args = job->args;
    const size_t all_rows = job->num_rows * args->num_kv_heads;
    const size_t keys = ceil_div(args->kv_len, splits);
    job->keys_per_split = ceil_div(keys, ATTENTION_KEY_ALIGN) * ATTENTION_KEY_ALIGN;
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

/* ---- gated delta rule and its convolution ---- */

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

struct causal_conv_job {
    const struct causal_conv_args* args;
};

static void run_causal_conv_item(void* context, size_t item) {
    const struct causal_conv_job* job = context;
    const size_t begin = item * CONV_CHANNELS_PER_ITEM;
    kandiga_vector.causal_conv(job->args, begin,
                               min_size(begin + CONV_CHANNELS_PER_ITEM, job->args->channels));
}

void vector_causal_conv(const struct causal_conv_args* args) {
    struct causal_conv_job job = {.args = args};
    run_items(run_causal_conv_item, &job, ceil_div(args->channels, CONV_CHANNELS_PER_ITEM),
              args->num_tokens * args->channels * (args->taps + 8));
}
