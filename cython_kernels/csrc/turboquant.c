/* The compressed KV cache above the instruction sets. */
#include "turboquant.h"

#include <math.h>
#include <string.h>

#include "turboquant_record.h"
#include "vector_items.h"

/* Pieces to cut a call into: enough for any machine's cores, few enough to merge cheaply. */
enum { WANTED_ITEMS = 64, MAX_SPLITS = 32, MIN_BLOCKS_PER_SPLIT = 4 };
enum { RECORD_ALIGN = 64 };

static size_t place(size_t* end, size_t num_bytes) {
    const size_t offset = *end;
    *end += num_bytes;
    return offset;
}

/* A block has 2 * padded_dim units of keys, and as many of values. */
static struct turboquant_code place_code(size_t* end, int bits, size_t padded_dim) {
    static const size_t code_bytes[9] = {[2] = 16, [3] = 16, [4] = 32, [8] = 64};
    struct turboquant_code code = {.bits = bits};
    if (bits == 0) {
        return code;
    }
    code.code_bytes = code_bytes[bits];
    code.sign_bytes = bits == 1 || bits == 3 ? 8 : 0;
    code.scales = place(end, TQ_BLOCK_TOKENS * sizeof(uint16_t));
    code.codes = place(end, 2 * padded_dim * code.code_bytes);
    code.signs = place(end, 2 * padded_dim * code.sign_bytes);
    return code;
}

void turboquant_make_layout(size_t num_kv_heads, size_t head_dim, int key_bits, int value_bits,
                            int has_residual, struct turboquant_layout* layout) {
    size_t end = 0;
    memset(layout, 0, sizeof *layout);
    layout->num_kv_heads = num_kv_heads;
    layout->head_dim = head_dim;
    layout->padded_dim = ceil_div(head_dim, TQ_LANES) * TQ_LANES;
    layout->stages = (head_dim & (head_dim - 1)) == 0 ? 1 : TQ_MAX_STAGES;
    layout->mean = place(&end, layout->padded_dim * sizeof(uint16_t));
    layout->keys = place_code(&end, key_bits - (has_residual ? 1 : 0), layout->padded_dim);
    layout->residual = place_code(&end, has_residual ? 1 : 0, layout->padded_dim);
    layout->values = place_code(&end, value_bits, layout->padded_dim);
    layout->record_bytes = ceil_div(end, RECORD_ALIGN) * RECORD_ALIGN;
    layout->block_bytes = num_kv_heads * layout->record_bytes;
}

void turboquant_signs(uint64_t seed, size_t count, float* signs) {
    uint64_t state = seed;
    for (size_t i = 0; i < count; i++) {
        state += 0x9e3779b97f4a7c15u;
        uint64_t z = (state ^ state >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        signs[i] = (z ^ z >> 31) >> 63 ? -1.0f : 1.0f;
    }
}

struct encode_job {
    const struct turboquant_layout* layout;
    const uint16_t* halves[2];
    ptrdiff_t head_stride, token_stride;
    const float* energies;
    uint8_t* block;
};

static void run_encode_item(void* context, size_t item) {
    const struct encode_job* job = context;
    const size_t head = item / 2;
    const uint16_t* rows = job->halves[item % 2] + (ptrdiff_t)head * job->head_stride;
    uint8_t* record = job->block + head * job->layout->record_bytes;
    if (item % 2 == 0) {
        const float* energies = job->energies ? job->energies + head * job->layout->head_dim : NULL;
        kandiga_turboquant.encode_keys(job->layout, rows, job->token_stride, energies, record);
    } else {
        kandiga_turboquant.encode_values(job->layout, rows, job->token_stride, record);
    }
}

void turboquant_encode(const struct turboquant_layout* layout, const uint16_t* keys,
                       const uint16_t* values, ptrdiff_t head_stride, ptrdiff_t token_stride,
                       const float* energies, uint8_t* block) {
    struct encode_job job = {.layout = layout,
                             .halves = {keys, values},
                             .head_stride = head_stride,
                             .token_stride = token_stride,
                             .energies = energies,
                             .block = block};
    kandiga_parallel_for(run_encode_item, &job, 2 * layout->num_kv_heads);
}

void turboquant_add_energies(const struct rows* q, size_t num_kv_heads, float* energies) {
    const size_t group = q->n1 / num_kv_heads;
    for (size_t token = 0; token < q->n0; token++) {
        for (size_t head = 0; head < q->n1; head++) {
            const float* row = row_at(q, token, head);
            float* sums = energies + head / group * q->width;
            for (size_t d = 0; d < q->width; d++) {
                sums[d] += row[d] * row[d];
            }
        }
    }
}

/* Coordinates (head_dim, 16) of 16 tokens in the rotated basis. */
static void decode_lanes(const struct turboquant_layout* layout, const struct turboquant_code* code,
                         const uint8_t* record, int is_keys, size_t group, float* lanes) {
    for (size_t d = 0; d < layout->head_dim; d++) {
        for (size_t t = 0; t < TQ_LANES; t++) {
            const size_t token = group * TQ_LANES + t;
            const size_t unit =
                is_keys ? group * (layout->padded_dim / TQ_MEMBERS) + d / TQ_MEMBERS
                        : d / TQ_LANES * (TQ_BLOCK_TOKENS / TQ_MEMBERS) + token / TQ_MEMBERS;
            const size_t j = is_keys ? t * TQ_MEMBERS + d % TQ_MEMBERS
                                     : d % TQ_LANES * TQ_MEMBERS + token % TQ_MEMBERS;
            lanes[d * TQ_LANES + t] = (float)level_at(code, record, unit, j) * TQ_LEVEL_UNIT *
                                      half_at(record, code->scales, token);
        }
    }
}

void turboquant_decode(const struct turboquant_layout* layout, const uint8_t* record, int is_keys,
                       float* out) {
    float lanes[TQ_MAX_HEAD_DIM * TQ_LANES], rest[TQ_MAX_HEAD_DIM * TQ_LANES];
    const size_t dims = layout->head_dim;
    const float* signs = is_keys ? layout->key_signs : layout->value_signs;
    const struct turboquant_code* code = is_keys ? &layout->keys : &layout->values;
    for (size_t group = 0; group < TQ_BLOCK_TOKENS / TQ_LANES; group++) {
        decode_lanes(layout, code, record, is_keys, group, lanes);
        if (is_keys && layout->residual.bits) {
            decode_lanes(layout, &layout->residual, record, 1, group, rest);
            kandiga_turboquant.rotate(layout->residual_signs, layout->stages, dims, 1, rest);
            for (size_t i = 0; i < dims * TQ_LANES; i++) {
                lanes[i] += rest[i];
            }
        }
        kandiga_turboquant.rotate(signs, layout->stages, dims, 1, lanes);
        for (size_t t = 0; t < TQ_LANES; t++) {
            for (size_t d = 0; d < dims; d++) {
                out[(group * TQ_LANES + t) * dims + d] =
                    lanes[d * TQ_LANES + t] + (is_keys ? half_at(record, layout->mean, d) : 0.0f);
            }
        }
    }
}

/* Rows are counted KV head by KV head: token by token, then the query heads of the group. */
struct attend_job {
    const struct turboquant_cache* cache;
    const struct attention_args* args;
    const struct rows* out;
    size_t rows_of_head, all_rows, num_tiles; /* tiles of one KV head */
    size_t num_splits, blocks_per_split;
    struct turboquant_queries queries;
    float *acc, *max, *sum; /* (num_splits, all_rows[, padded_dim]): coded tokens */
    float *plain_acc, *plain_max, *plain_sum; /* (all_rows[, head_dim]): uncoded ones */
};

static size_t token_of(const struct attend_job* job, size_t row) {
    return row % job->rows_of_head / job->args->group;
}

static size_t head_of(const struct attend_job* job, size_t row) {
    return row / job->rows_of_head * job->args->group + row % job->args->group;
}

static const float* query_row(const struct attend_job* job, size_t row) {
    return job->args->q + (ptrdiff_t)token_of(job, row) * job->args->q_token_stride +
           (ptrdiff_t)head_of(job, row) * job->args->q_head_stride;
}

static void run_prepare_item(void* context, size_t item) {
    const struct attend_job* job = context;
    const size_t first = item * TQ_LANES;
    const size_t num_rows = min_size(TQ_LANES, job->all_rows - first);
    const float* rows[TQ_LANES];
    for (size_t i = 0; i < num_rows; i++) {
        rows[i] = query_row(job, first + i);
    }
    kandiga_turboquant.prepare(job->cache->layout, rows, num_rows, &job->queries, first);
}

static void attend_coded(const struct attend_job* job, size_t kv_head, size_t tile, size_t split) {
    const struct turboquant_cache* cache = job->cache;
    const size_t begin = tile * TQ_TILE_ROWS;
    const size_t first_row = kv_head * job->rows_of_head + begin;
    const size_t first_block = split * job->blocks_per_split;
    const size_t at = split * job->all_rows + first_row;
    const float* q[TQ_TILE_ROWS];
    const struct turboquant_tile work = {
        .layout = cache->layout,
        .queries = &job->queries,
        .first_row = first_row,
        .num_rows = min_size(TQ_TILE_ROWS, job->rows_of_head - begin),
        .q = q,
        .scale = job->args->scale,
        .blocks = cache->blocks + first_block,
        .counts = cache->counts + first_block,
        .num_blocks = min_size(job->blocks_per_split, cache->num_blocks - first_block),
        .record = kv_head * cache->layout->record_bytes,
        .acc = job->acc + at * cache->layout->padded_dim,
        .max = job->max + at,
        .sum = job->sum + at,
    };
    for (size_t i = 0; i < work.num_rows; i++) {
        q[i] = query_row(job, first_row + i);
    }
    kandiga_turboquant.attend(&work);
}

static void attend_plain(const struct attend_job* job, size_t kv_head, size_t tile) {
    const struct attention_args* args = job->args;
    const size_t begin = tile * TQ_TILE_ROWS;
    const size_t end = min_size(begin + TQ_TILE_ROWS, job->rows_of_head);
    const size_t first_row = kv_head * job->rows_of_head;
    const struct attention_partial partial = {
        .acc = job->plain_acc + first_row * args->head_dim,
        .token_stride = (ptrdiff_t)(args->group * args->head_dim),
        .head_stride = (ptrdiff_t)args->head_dim,
        .max = job->plain_max + first_row + begin,
        .sum = job->plain_sum + first_row + begin,
    };
    kandiga_vector.attention(args, kv_head, begin, end, 0, args->kv_len, &partial);
}

/* The last split of each tile is the uncoded tokens. */
static void run_attend_item(void* context, size_t item) {
    const struct attend_job* job = context;
    const size_t parts = job->num_splits + 1;
    const size_t split = item % parts;
    const size_t tile = item / parts % job->num_tiles;
    const size_t kv_head = item / parts / job->num_tiles;
    if (split == job->num_splits) {
        attend_plain(job, kv_head, tile);
    } else {
        attend_coded(job, kv_head, tile, split);
    }
}

/* What a row's parts weigh in its softmax: splits first, the uncoded tokens last. */
static void part_weights(const struct attend_job* job, size_t row, float* weights) {
    float max = job->plain_max[row], sum;
    for (size_t split = 0; split < job->num_splits; split++) {
        max = fmaxf(max, job->max[split * job->all_rows + row]);
    }
    weights[job->num_splits] = expf(job->plain_max[row] - max);
    sum = weights[job->num_splits] * job->plain_sum[row];
    for (size_t split = 0; split < job->num_splits; split++) {
        const size_t at = split * job->all_rows + row;
        weights[split] = expf(job->max[at] - max);
        sum += weights[split] * job->sum[at];
    }
    for (size_t part = 0; part <= job->num_splits; part++) {
        weights[part] /= sum;
    }
}

/* Sum the parts of 16 rows, always in the same order; turn the coded ones back. */
static void run_merge_item(void* context, size_t item) {
    const struct attend_job* job = context;
    const struct turboquant_layout* layout = job->cache->layout;
    const size_t first = item * TQ_LANES, dims = layout->head_dim;
    const size_t num_rows = min_size(TQ_LANES, job->all_rows - first);
    float lanes[TQ_MAX_HEAD_DIM * TQ_LANES], sums[TQ_MAX_HEAD_DIM];
    float plain_weights[TQ_LANES];
    memset(lanes, 0, dims * TQ_LANES * sizeof(float));
    for (size_t i = 0; i < num_rows; i++) {
        float weights[MAX_SPLITS + 1];
        part_weights(job, first + i, weights);
        plain_weights[i] = weights[job->num_splits];
        memset(sums, 0, dims * sizeof(float));
        for (size_t split = 0; split < job->num_splits; split++) {
            const size_t at = split * job->all_rows + first + i;
            kandiga_vector.scale_add(job->acc + at * layout->padded_dim, weights[split], sums,
                                     dims);
        }
        for (size_t d = 0; d < dims; d++) {
            lanes[d * TQ_LANES + i] = sums[d];
        }
    }
    kandiga_turboquant.rotate(layout->value_signs, layout->stages, dims, 1, lanes);
    for (size_t i = 0; i < num_rows; i++) {
        float* out = row_at(job->out, token_of(job, first + i), head_of(job, first + i));
        const float* plain = job->plain_acc + (first + i) * dims;
        for (size_t d = 0; d < dims; d++) {
            out[d] = lanes[d * TQ_LANES + i] + plain_weights[i] * plain[d];
        }
    }
}

/* Block ranges to split into, so that a long context keeps every thread busy whatever the number of
 * KV heads. Depends on the shapes only. */
static void choose_splits(struct attend_job* job) {
    const size_t num_blocks = job->cache->num_blocks;
    const size_t by_items = WANTED_ITEMS / (job->args->num_kv_heads * job->num_tiles) + 1;
    size_t splits = min_size(min_size(num_blocks / MIN_BLOCKS_PER_SPLIT, by_items), MAX_SPLITS);
    splits = splits ? splits : 1;
    job->blocks_per_split = ceil_div(num_blocks, splits);
    job->num_splits = ceil_div(num_blocks, job->blocks_per_split);
}

static float* take(float** next, size_t count) {
    float* const taken = *next;
    *next += ceil_div(count, TQ_LANES) * TQ_LANES;
    return taken;
}

/* Lay the partial sums and queries out in memory for `floats`, or count what they need. */
static size_t place_scratch(struct attend_job* job, float* memory) {
    const struct turboquant_layout* layout = job->cache->layout;
    const size_t rows = job->all_rows, splits = job->num_splits;
    const size_t words = rows * (layout->padded_dim / TQ_MEMBERS);
    float* next = memory;
    job->acc = take(&next, splits * rows * layout->padded_dim);
    job->max = take(&next, splits * rows);
    job->sum = take(&next, splits * rows);
    job->plain_acc = take(&next, rows * layout->head_dim);
    job->plain_max = take(&next, rows);
    job->plain_sum = take(&next, rows);
    job->queries.scales = take(&next, rows);
    job->queries.residual_scales = take(&next, rows);
    job->queries.codes = (int32_t*)take(&next, words);
    job->queries.totals = (int32_t*)take(&next, rows);
    if (layout->residual.bits) {
        job->queries.residual_codes = (int32_t*)take(&next, words);
        job->queries.residual_totals = (int32_t*)take(&next, rows);
    }
    return (size_t)(next - memory);
}

static size_t scratch_floats(const struct attend_job* job) {
    const struct turboquant_layout* layout = job->cache->layout;
    const size_t per_row = (job->num_splits + 2) * (layout->padded_dim + 4) + 8;
    return job->all_rows * per_row + 16 * TQ_LANES;
}

int turboquant_attention(const struct turboquant_cache* cache, const struct attention_args* args,
                         const struct rows* out) {
    const size_t rows_of_head = args->num_tokens * args->group;
    struct attend_job job = {.cache = cache,
                             .args = args,
                             .out = out,
                             .rows_of_head = rows_of_head,
                             .all_rows = rows_of_head * args->num_kv_heads,
                             .num_tiles = ceil_div(rows_of_head, TQ_TILE_ROWS)};
    if (job.all_rows == 0 || cache->num_blocks == 0) {
        return vector_attention(args, out);
    }
    choose_splits(&job);
    kandiga_pool_hold();
    float* memory = kandiga_pool_scratch(scratch_floats(&job) * sizeof(float));
    if (memory) {
        const size_t tokens = cache->num_blocks * TQ_BLOCK_TOKENS;
        const size_t groups = ceil_div(job.all_rows, TQ_LANES);
        const size_t per_group = TQ_LANES * args->head_dim * 16;
        place_scratch(&job, memory);
        run_items(run_prepare_item, &job, groups, groups * per_group);
        run_items(run_attend_item, &job, args->num_kv_heads * job.num_tiles * (job.num_splits + 1),
                  2 * job.all_rows * tokens * args->head_dim);
        run_items(run_merge_item, &job, groups, groups * per_group * 2);
    }
    kandiga_pool_release();
    return memory ? 0 : -1;
}
