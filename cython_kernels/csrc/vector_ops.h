/* The vector kernels: everything of a decoder layer that is not a weight matrix.
 *
 * vector_ops.h      this file: argument structs and the table of kernels of one instruction set
 * vector_scalar.c   plain C of every kernel: the reference the others are tested against
 * simd_<isa>.h      what a vector is in that instruction set (simd_avx2.h documents the names)
 * *_body.inc        norm, elementwise, rope, attention, gated_delta, delta_chunk, causal_conv,
 * routing: written once over simd_<isa>.h and vector_math.inc (exp, loops over a row)
 * vector_<isa>.c    compiles all bodies for one instruction set, through vector_table.inc
 * vector.h          the public calls: strides, splitting over threads, deterministic merges, in
 *                   attention.c, gated_delta.c, rope.c and, for the rest, vector_rows.c
 * ../vector.pxi     the Python border: shapes, dtypes, strides, GIL
 *
 * Kernels are single-threaded, allocate nothing, take lengths that need not be multiples of a
 * vector, pointers that need no alignment beyond that of their element, and read no byte past the
 * end of a row. Strides count elements. Arithmetic is float32.
 */
#ifndef KANDIGA_VECTOR_OPS_H
#define KANDIGA_VECTOR_OPS_H

#include <stddef.h>
#include <stdint.h>

/* Rows (token x query head of one KV head) that share a walk over a block of keys. */
enum { ATTENTION_TILE_ROWS = 32 };

/* Causal grouped-query attention: token t sees keys [0, kv_len - num_tokens + t]. */
struct attention_args {
    const float* q; /* (num_tokens, num_kv_heads * group, head_dim) */
    ptrdiff_t q_token_stride, q_head_stride;
    const void* keys;   /* (num_kv_heads, capacity, head_dim), float or IEEE half */
    const void* values; /* as keys */
    ptrdiff_t key_head_stride, key_stride, value_head_stride, value_stride;
    int half_cache;
    size_t num_tokens, num_kv_heads, group, head_dim, kv_len;
    float scale;
};

/* Where the unnormalized softmax sum of one KV head goes: row i is token i / group, query head i %
 * group of the group. */
struct attention_partial {
    float* acc;
    ptrdiff_t token_stride, head_stride;
    float* max; /* (row_end - row_begin): largest score seen, -inf when the row sees no key of the
                   range */
    float* sum; /* (row_end - row_begin): sum of exp(score - max) */
};

/* Gated delta rule: S = g S; S += beta (v - S k) k^T; out = S q. Value head h reads key head h /
 * (value heads / key heads). */
struct gated_delta_args {
    const float *q, *k; /* (num_tokens, num_key_heads, key_dim) */
    ptrdiff_t q_token_stride, q_head_stride, k_token_stride, k_head_stride;
    const float* v; /* (num_tokens, num_value_heads, value_dim) */
    ptrdiff_t v_token_stride, v_head_stride;
    const float *g, *beta; /* (num_tokens, num_value_heads) */
    ptrdiff_t g_token_stride, beta_token_stride;
    float* state; /* (num_value_heads, value_dim, key_dim), contiguous */
    float* out;   /* (num_tokens, num_value_heads, value_dim) */
    ptrdiff_t out_token_stride, out_head_stride;
    size_t num_tokens, num_key_heads, num_value_heads, key_dim, value_dim;
};

/* Tokens that the chunked gated delta rule takes at once. The products with the state cost the same
 * a token whatever the chunk, those among its tokens grow with it; below 32 the state, read once a
 * chunk, is too much of the traffic. */
enum { DELTA_CHUNK_TOKENS = 32 };

/* One value head over a chunk of 1 <= num_tokens <= DELTA_CHUNK_TOKENS tokens; all but `out`
 * contiguous. */
struct delta_chunk {
    size_t num_tokens, key_dim, value_dim;
    const float *q, *k;           /* (num_tokens, key_dim) */
    const float *k_dots, *q_dots; /* (num_tokens, DELTA_CHUNK_TOKENS): k(t) . k(i), q(t) . k(i) */
    const float *decay, *beta;    /* (num_tokens) */
    float* v;                     /* (num_tokens, value_dim); overwritten */
    float* known;                 /* (num_tokens, value_dim) of scratch */
    float* state;                 /* (key_dim, value_dim): the transpose of gated_delta's */
    float* out;                   /* (num_tokens, value_dim) */
    size_t out_stride;
};

/* Depthwise causal convolution, then silu. */
struct causal_conv_args {
    const float* x; /* (num_tokens, channels) */
    ptrdiff_t x_token_stride;
    const float* weight; /* (taps, channels), contiguous; the last tap meets the token itself */
    float* state;        /* (taps - 1, channels), contiguous: the inputs before x, oldest first */
    float* out;          /* (num_tokens, channels) */
    ptrdiff_t out_token_stride;
    size_t num_tokens, channels, taps;
};

/* A gated delta layer between its projections: convolve q, k, v; normalize q and k, scaling q by
 * key_dim^-0.5; the gated delta rule with decay and beta from a and b; out = rms_norm(.) * silu(z).
 */
struct gated_delta_heads_args {
    const float* qkv;   /* (num_tokens, channels): q and k of the key heads, v of the value heads */
    const float* z;     /* (num_tokens, num_value_heads * value_dim) */
    const float *a, *b; /* (num_tokens, num_value_heads) */
    ptrdiff_t qkv_token_stride, z_token_stride, a_token_stride, b_token_stride;
    const float* conv_weight;     /* (conv_taps, channels), contiguous */
    const float *a_log, *dt_bias; /* (num_value_heads) */
    const float* norm_weight;     /* (value_dim) */
    float* conv_state;            /* (conv_taps - 1, channels), contiguous */
    float* state;                 /* (num_value_heads, value_dim, key_dim), contiguous */
    size_t num_tokens, num_key_heads, num_value_heads, key_dim, value_dim, conv_taps;
    float norm_eps, normalize_eps;
};

/* out[t] = sigmoid(shared_gate[t]) * shared[t] + sum over k of scores[t, k] * results[order[t, k]],
 * in this order. */
struct expert_sum_args {
    const float* results;              /* (rows, hidden_size) */
    const float* scores;               /* (num_tokens, top_k); also `order` */
    const int32_t* order;              /* rows of results */
    const float *shared, *shared_gate; /* (num_tokens, hidden_size) and (num_tokens), or NULL */
    float* out;                        /* (num_tokens, hidden_size) */
    size_t num_tokens, top_k, hidden_size;
};

/* How scores are made from logits. Normalizing the top k of a softmax is the softmax of the top k
 * logits. */
enum score_mode { SCORES_OF_ALL, SCORES_OF_SELECTED };

/* Function pointers only; a NULL entry falls back to scalar. */
struct vector_ops {
    /* out = x / sqrt(mean(x^2) + eps) * weight; weight may be NULL; out may be x. */
    void (*rms_norm)(const float* x, const float* weight, float eps, float* out, size_t n);
    /* x += delta, then rms_norm of x. */
    void (*add_rms_norm)(float* x, const float* delta, const float* weight, float eps, float* out,
                         size_t n);
    /* out = rms_norm(x) * silu(gate). */
    void (*rms_norm_gated)(const float* x, const float* gate, const float* weight, float eps,
                           float* out, size_t n);
    /* x *= scale / sqrt(sum(x^2) + eps). */
    void (*l2_normalize)(float* x, float eps, float scale, size_t n);

    void (*add)(float* x, const float* y, size_t n); /* x += y */
    void (*silu_mul)(const float* gate, const float* up, float* out,
                     size_t n); /* out = silu(gate) * up */
    void (*sigmoid_mul)(const float* x, const float* gate, float* out,
                        size_t n); /* out = x * sigmoid(gate) */
    void (*scale_add)(const float* x, float scale, float* out, size_t n); /* out += scale * x */
    void (*exponential)(const float* x, float* out, size_t n);            /* out = exp(x) */
    void (*store_half)(const float* x, uint16_t* out, size_t n); /* round to nearest even */

    /* Rotate pairs of x by the angles whose cosines and sines are given: (x[i], x[i + pairs]), or
     * (x[2i], x[2i + 1]). */
    void (*rope)(float* x, const float* cosines, const float* sines, size_t pairs, int traditional);

    /* Rows [row_begin, row_end), at most ATTENTION_TILE_ROWS of them, over keys [key_begin,
     * key_end). */
    void (*attention)(const struct attention_args* args, size_t kv_head, size_t row_begin,
                      size_t row_end, size_t key_begin, size_t key_end,
                      const struct attention_partial* partial);

    /* All tokens for rows [row_begin, row_end) of the state of one value head. */
    void (*gated_delta)(const struct gated_delta_args* args, size_t value_head, size_t row_begin,
                        size_t row_end);

    /* k_dots and q_dots of a chunk, of which only q and k are read; they do not depend on the value
     * head. keys_transposed: (key_dim, DELTA_CHUNK_TOKENS) of scratch. */
    void (*delta_chunk_dots)(const struct delta_chunk* chunk, float* keys_transposed, float* k_dots,
                             float* q_dots);
    /* The gated delta rule over the chunk. */
    void (*delta_chunk)(const struct delta_chunk* chunk);

    /* Channels [begin, end) of tokens [token_begin, token_end), into out (tokens, channels of the
     * range); args->state is read, args->out is not used. */
    void (*causal_conv)(const struct causal_conv_args* args, size_t token_begin, size_t token_end,
                        size_t begin, size_t end, float* out, size_t out_stride);

    /* Indices of the top_k largest logits, descending, ties to the lower index, and their scores. A
     * NaN logit sorts below all others and makes every score NaN. */
    void (*top_k)(const float* logits, size_t num_experts, size_t top_k, enum score_mode mode,
                  int32_t* indices, float* scores);
};

extern const struct vector_ops kandiga_vector_scalar;
extern const struct vector_ops kandiga_vector_avx2;
extern const struct vector_ops kandiga_vector_avx512;
extern const struct vector_ops kandiga_vector_neon;

#endif
