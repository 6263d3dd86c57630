/* A gated delta layer between its projections, one key head with its value heads at a time.
 *
 * An item convolves a chunk of its queries, keys and values, normalizes queries and keys, walks the
 * delta rule over the chunk and norms and gates the outputs, all in memory that stays in the core's
 * cache, then takes the next chunk. In decoding that is one hand-off to the pool instead of five,
 * and the state is all that memory has to deliver. */
#include "vector_items.h"

#include <math.h>

/* Below this many tokens, transposing the state costs more than products with it save. */
enum { MIN_CHUNKED_TOKENS = 24 };
enum { FLOATS_PER_CACHE_LINE = 16 };

/* What an item works in. Channels of a head lie side by side, tokens behind each other. */
struct heads_scratch {
    float *q, *k;           /* (DELTA_CHUNK_TOKENS, key_dim) */
    float *v, *known;       /* (DELTA_CHUNK_TOKENS, value_dim) */
    float* keys_transposed; /* (key_dim, DELTA_CHUNK_TOKENS) */
    float *k_dots, *q_dots; /* (DELTA_CHUNK_TOKENS, DELTA_CHUNK_TOKENS) */
    float* states;          /* (value heads of a key head, key_dim, value_dim) */
    float decay[DELTA_CHUNK_TOKENS], beta[DELTA_CHUNK_TOKENS];
};

struct heads_job {
    const struct gated_delta_heads_args* args;
    const struct rows* out;
    struct causal_conv_args conv;
    size_t group; /* value heads that share a key head */
    int chunked;
    float* scratch;
    size_t floats_per_item;
};

static float* take(float* memory, size_t* used, size_t floats) {
    float* begin = memory ? memory + *used : NULL;
    *used += ceil_div(floats, 16) * 16; /* whole cache lines */
    return begin;
}

/* Divide memory; returns how many floats that takes, which is all it does for NULL. */
static size_t place_scratch(const struct heads_job* job, float* memory, struct heads_scratch* s) {
    const struct gated_delta_heads_args* args = job->args;
    size_t used = 0;
    s->q = take(memory, &used, DELTA_CHUNK_TOKENS * args->key_dim);
    s->k = take(memory, &used, DELTA_CHUNK_TOKENS * args->key_dim);
    s->v = take(memory, &used, DELTA_CHUNK_TOKENS * args->value_dim);
    s->known = take(memory, &used, DELTA_CHUNK_TOKENS * args->value_dim);
    s->keys_transposed = take(memory, &used, DELTA_CHUNK_TOKENS * args->key_dim);
    s->k_dots = take(memory, &used, DELTA_CHUNK_TOKENS * DELTA_CHUNK_TOKENS);
    s->q_dots = take(memory, &used, DELTA_CHUNK_TOKENS * DELTA_CHUNK_TOKENS);
    s->states =
        take(memory, &used, job->chunked ? job->group * args->key_dim * args->value_dim : 0);
    return used;
}

static size_t values_begin(const struct gated_delta_heads_args* args, size_t value_head) {
    return 2 * args->num_key_heads * args->key_dim + value_head * args->value_dim;
}

/* to (columns, rows) = the transpose of from (rows, columns), in squares that stay in L1. */
static void transpose(const float* from, size_t rows, size_t columns, float* to) {
    enum { SQUARE = 16 };
    for (size_t row = 0; row < rows; row += SQUARE) {
        for (size_t column = 0; column < columns; column += SQUARE) {
            for (size_t r = row; r < min_size(row + SQUARE, rows); r++) {
                for (size_t c = column; c < min_size(column + SQUARE, columns); c++) {
                    to[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
}

static void convolve(const struct heads_job* job, size_t token, size_t num_tokens, size_t begin,
                     size_t width, float* out) {
    kandiga_vector.causal_conv(&job->conv, token, token + num_tokens, begin, begin + width, out,
                               width);
}

static void make_queries_and_keys(const struct heads_job* job, size_t key_head, size_t token,
                                  size_t num_tokens, struct heads_scratch* s) {
    const struct gated_delta_heads_args* args = job->args;
    const size_t dim = args->key_dim;
    convolve(job, token, num_tokens, key_head * dim, dim, s->q);
    convolve(job, token, num_tokens, (args->num_key_heads + key_head) * dim, dim, s->k);
    const float query_scale = 1.0f / sqrtf((float)dim);
    for (size_t t = 0; t < num_tokens; t++) {
        kandiga_vector.l2_normalize(s->q + t * dim, args->normalize_eps, query_scale, dim);
        kandiga_vector.l2_normalize(s->k + t * dim, args->normalize_eps, 1.0f, dim);
    }
}

/* Needed at the end of the chunk; too far apart for the processor to see a pattern. */
static void fetch_gates_and_outputs(const struct heads_job* job, size_t head, size_t token,
                                    size_t num_tokens) {
    const struct gated_delta_heads_args* args = job->args;
    for (size_t t = token; t < token + num_tokens; t++) {
        const float* z = args->z + (ptrdiff_t)t * args->z_token_stride;
        const float* out = row_at(job->out, t, head);
        for (size_t i = 0; i < args->value_dim; i += FLOATS_PER_CACHE_LINE) {
            __builtin_prefetch(z + head * args->value_dim + i);
            __builtin_prefetch(out + i, 1);
        }
    }
}

static void make_gates(const struct gated_delta_heads_args* args, size_t head, size_t token,
                       size_t num_tokens, struct heads_scratch* s) {
    for (size_t t = 0; t < num_tokens; t++) {
        const ptrdiff_t row = (ptrdiff_t)(token + t);
        s->decay[t] = delta_decay(args->a[row * args->a_token_stride + (ptrdiff_t)head],
                                  args->a_log[head], args->dt_bias[head]);
        s->beta[t] = delta_beta(args->b[row * args->b_token_stride + (ptrdiff_t)head]);
    }
}

static void walk_chunk(const struct heads_job* job, size_t head, size_t num_tokens, float* out,
                       const struct heads_scratch* s) {
    const struct gated_delta_heads_args* args = job->args;
    const size_t state_floats = args->key_dim * args->value_dim;
    const struct delta_chunk chunk = {.num_tokens = num_tokens,
                                      .key_dim = args->key_dim,
                                      .value_dim = args->value_dim,
                                      .q = s->q,
                                      .k = s->k,
                                      .k_dots = s->k_dots,
                                      .q_dots = s->q_dots,
                                      .decay = s->decay,
                                      .beta = s->beta,
                                      .v = s->v,
                                      .known = s->known,
                                      .state = s->states + head % job->group * state_floats,
                                      .out = out,
                                      .out_stride = (size_t)job->out->stride0};
    kandiga_vector.delta_chunk(&chunk);
}

static void walk_tokens(const struct heads_job* job, size_t head, size_t num_tokens, float* out,
                        const struct heads_scratch* s) {
    const struct gated_delta_heads_args* args = job->args;
    const struct gated_delta_args one_head = {
        .q = s->q,
        .q_token_stride = (ptrdiff_t)args->key_dim,
        .k = s->k,
        .k_token_stride = (ptrdiff_t)args->key_dim,
        .v = s->v,
        .v_token_stride = (ptrdiff_t)args->value_dim,
        .g = s->decay,
        .g_token_stride = 1,
        .beta = s->beta,
        .beta_token_stride = 1,
        .state = args->state + head * args->key_dim * args->value_dim,
        .out = out,
        .out_token_stride = job->out->stride0,
        .num_tokens = num_tokens,
        .num_key_heads = 1,
        .num_value_heads = 1,
        .key_dim = args->key_dim,
        .value_dim = args->value_dim,
    };
    kandiga_vector.gated_delta(&one_head, 0, 0, args->value_dim);
}

static void run_value_head(const struct heads_job* job, size_t head, size_t token,
                           size_t num_tokens, struct heads_scratch* s) {
    const struct gated_delta_heads_args* args = job->args;
    float* out = row_at(job->out, token, head);
    convolve(job, token, num_tokens, values_begin(args, head), args->value_dim, s->v);
    fetch_gates_and_outputs(job, head, token, num_tokens);
    make_gates(args, head, token, num_tokens, s);
    if (job->chunked) {
        walk_chunk(job, head, num_tokens, out, s);
    } else {
        walk_tokens(job, head, num_tokens, out, s);
    }
    for (size_t t = 0; t < num_tokens; t++) {
        const float* gate = args->z + (ptrdiff_t)(token + t) * args->z_token_stride +
                            (ptrdiff_t)(head * args->value_dim);
        kandiga_vector.rms_norm_gated(row_at(job->out, token + t, head), gate, args->norm_weight,
                                      args->norm_eps, row_at(job->out, token + t, head),
                                      args->value_dim);
    }
}

static void move_states(const struct heads_job* job, size_t first_head, float* states, int back) {
    const struct gated_delta_heads_args* args = job->args;
    const size_t floats = args->key_dim * args->value_dim;
    for (size_t i = 0; i < job->group; i++) {
        float* state = args->state + (first_head + i) * floats;
        if (back) {
            transpose(states + i * floats, args->key_dim, args->value_dim, state);
        } else {
            transpose(state, args->value_dim, args->key_dim, states + i * floats);
        }
    }
}

static void advance_convolution(const struct heads_job* job, size_t key_head) {
    const struct gated_delta_heads_args* args = job->args;
    const size_t q = key_head * args->key_dim;
    const size_t k = (args->num_key_heads + key_head) * args->key_dim;
    const size_t v = values_begin(args, key_head * job->group);
    vector_causal_conv_advance(&job->conv, q, q + args->key_dim);
    vector_causal_conv_advance(&job->conv, k, k + args->key_dim);
    vector_causal_conv_advance(&job->conv, v, v + job->group * args->value_dim);
}

static void run_key_head(void* context, size_t key_head) {
    const struct heads_job* job = context;
    const size_t num_tokens = job->args->num_tokens;
    const size_t first_head = key_head * job->group;
    struct heads_scratch s;
    place_scratch(job, job->scratch + key_head * job->floats_per_item, &s);
    if (job->chunked) {
        move_states(job, first_head, s.states, 0);
    }
    for (size_t token = 0; token < num_tokens; token += DELTA_CHUNK_TOKENS) {
        const size_t n = min_size(DELTA_CHUNK_TOKENS, num_tokens - token);
        make_queries_and_keys(job, key_head, token, n, &s);
        if (job->chunked) {
            const struct delta_chunk chunk = {
                .num_tokens = n, .key_dim = job->args->key_dim, .q = s.q, .k = s.k};
            kandiga_vector.delta_chunk_dots(&chunk, s.keys_transposed, s.k_dots, s.q_dots);
        }
        for (size_t i = 0; i < job->group; i++) {
            run_value_head(job, first_head + i, token, n, &s);
        }
    }
    if (job->chunked) {
        move_states(job, first_head, s.states, 1);
    }
    advance_convolution(job, key_head);
}

int vector_gated_delta_heads(const struct gated_delta_heads_args* args, const struct rows* out) {
    if (args->num_tokens == 0) {
        return 0;
    }
    struct heads_job job = {.args = args,
                            .out = out,
                            .group = args->num_value_heads / args->num_key_heads,
                            .chunked = args->num_tokens >= MIN_CHUNKED_TOKENS};
    job.conv = (struct causal_conv_args){
        .x = args->qkv,
        .x_token_stride = args->qkv_token_stride,
        .weight = args->conv_weight,
        .state = args->conv_state,
        .num_tokens = args->num_tokens,
        .channels = values_begin(args, args->num_value_heads),
        .taps = args->conv_taps,
    };
    struct heads_scratch unused;
    job.floats_per_item = place_scratch(&job, NULL, &unused);
    kandiga_pool_hold();
    job.scratch = kandiga_pool_scratch(args->num_key_heads * job.floats_per_item * sizeof(float));
    if (job.scratch) {
        run_items(run_key_head, &job, args->num_key_heads,
                  4 * args->num_tokens * args->num_value_heads * args->value_dim * args->key_dim);
    }
    kandiga_pool_release();
    return job.scratch ? 0 : -1;
}
