/* Every vector kernel in plain C: slow, obvious, and what the others are compared with. Sums are
 * kept in double. */
#include "vector_ops.h"

#include <math.h>

#include "float16.h"
#include "top_k_heap.h"

static float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

static float silu(float x) {
    return x * sigmoid(x);
}

static double dot(const float* x, const float* y, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i] * (double)y[i];
    }
    return sum;
}

static void rms_norm(const float* x, const float* weight, float eps, float* out, size_t n) {
    const float factor = (float)(1.0 / sqrt(dot(x, x, n) / (double)n + (double)eps));
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] * factor * (weight ? weight[i] : 1.0f);
    }
}

static void add(float* x, const float* y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        x[i] += y[i];
    }
}

static void add_rms_norm(float* x, const float* delta, const float* weight, float eps, float* out,
                         size_t n) {
    add(x, delta, n);
    rms_norm(x, weight, eps, out, n);
}

static void rms_norm_gated(const float* x, const float* gate, const float* weight, float eps,
                           float* out, size_t n) {
    const float factor = (float)(1.0 / sqrt(dot(x, x, n) / (double)n + (double)eps));
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] * factor * weight[i] * silu(gate[i]);
    }
}

static void l2_normalize(float* x, float eps, float scale, size_t n) {
    const float factor = (float)((double)scale / sqrt(dot(x, x, n) + (double)eps));
    for (size_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

static void silu_mul(const float* gate, const float* up, float* out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = silu(gate[i]) * up[i];
    }
}

static void sigmoid_mul(const float* x, const float* gate, float* out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = x[i] * sigmoid(gate[i]);
    }
}

static void scale_add(const float* x, float scale, float* out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] += scale * x[i];
    }
}

static void exponential(const float* x, float* out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = expf(x[i]);
    }
}

static void store_half(const float* x, uint16_t* out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = float_to_half(x[i]);
    }
}

static void rope(float* x, const float* cosines, const float* sines, size_t pairs,
                 int traditional) {
    for (size_t i = 0; i < pairs; i++) {
        float* first = traditional ? &x[2 * i] : &x[i];
        float* second = traditional ? &x[2 * i + 1] : &x[i + pairs];
        const float a = *first;
        const float b = *second;
        *first = a * cosines[i] - b * sines[i];
        *second = a * sines[i] + b * cosines[i];
    }
}

static float cache_element(const void* cache, int half_cache, ptrdiff_t index) {
    return half_cache ? half_to_float(((const uint16_t*)cache)[index])
                      : ((const float*)cache)[index];
}

static double score(const struct attention_args* args, size_t kv_head, const float* q, size_t key) {
    const ptrdiff_t at =
        (ptrdiff_t)kv_head * args->key_head_stride + (ptrdiff_t)key * args->key_stride;
    double sum = 0.0;
    for (size_t d = 0; d < args->head_dim; d++) {
        sum +=
            (double)q[d] * (double)cache_element(args->keys, args->half_cache, at + (ptrdiff_t)d);
    }
    return sum * (double)args->scale;
}

static void attention_row(const struct attention_args* args, size_t kv_head, const float* q,
                          size_t key_begin, size_t key_end, float* acc, float* max, float* sum) {
    double largest = -INFINITY;
    for (size_t key = key_begin; key < key_end; key++) {
        largest = fmax(largest, score(args, kv_head, q, key));
    }
    for (size_t d = 0; d < args->head_dim; d++) {
        acc[d] = 0.0f;
    }
    double total = 0.0;
    for (size_t key = key_begin; key < key_end; key++) {
        const double weight = exp(score(args, kv_head, q, key) - largest);
        const ptrdiff_t at =
            (ptrdiff_t)kv_head * args->value_head_stride + (ptrdiff_t)key * args->value_stride;
        for (size_t d = 0; d < args->head_dim; d++) {
            acc[d] +=
                (float)weight * cache_element(args->values, args->half_cache, at + (ptrdiff_t)d);
        }
        total += weight;
    }
    *max = (float)largest;
    *sum = (float)total;
}

static void attention(const struct attention_args* args, size_t kv_head, size_t row_begin,
                      size_t row_end, size_t key_begin, size_t key_end,
                      const struct attention_partial* partial) {
    for (size_t row = row_begin; row < row_end; row++) {
        const ptrdiff_t token = (ptrdiff_t)(row / args->group);
        const ptrdiff_t head = (ptrdiff_t)(row % args->group);
        const size_t visible = args->kv_len - args->num_tokens + (size_t)token + 1;
        const float* q = args->q + token * args->q_token_stride +
                         ((ptrdiff_t)(kv_head * args->group) + head) * args->q_head_stride;
        attention_row(args, kv_head, q, key_begin, visible < key_end ? visible : key_end,
                      partial->acc + token * partial->token_stride + head * partial->head_stride,
                      &partial->max[row - row_begin], &partial->sum[row - row_begin]);
    }
}

static void gated_delta(const struct gated_delta_args* args, size_t value_head, size_t row_begin,
                        size_t row_end) {
    const ptrdiff_t key_head =
        (ptrdiff_t)(value_head / (args->num_value_heads / args->num_key_heads));
    for (size_t token = 0; token < args->num_tokens; token++) {
        const ptrdiff_t t = (ptrdiff_t)token;
        const ptrdiff_t h = (ptrdiff_t)value_head;
        const float* q = args->q + t * args->q_token_stride + key_head * args->q_head_stride;
        const float* k = args->k + t * args->k_token_stride + key_head * args->k_head_stride;
        const float* v = args->v + t * args->v_token_stride + h * args->v_head_stride;
        float* out = args->out + t * args->out_token_stride + h * args->out_head_stride;
        const float decay = args->g[t * args->g_token_stride + h];
        const float beta = args->beta[t * args->beta_token_stride + h];
        for (size_t row = row_begin; row < row_end; row++) {
            float* state = args->state + (value_head * args->value_dim + row) * args->key_dim;
            for (size_t d = 0; d < args->key_dim; d++) {
                state[d] *= decay;
            }
            const float delta = (v[row] - (float)dot(state, k, args->key_dim)) * beta;
            for (size_t d = 0; d < args->key_dim; d++) {
                state[d] += k[d] * delta;
            }
            out[row] = (float)dot(state, q, args->key_dim);
        }
    }
}

static void delta_chunk_dots(const struct delta_chunk* c, float* keys_transposed, float* k_dots,
                             float* q_dots) {
    (void)keys_transposed;
    for (size_t t = 0; t < c->num_tokens; t++) {
        for (size_t i = 0; i < c->num_tokens; i++) {
            const float* key = c->k + i * c->key_dim;
            k_dots[t * DELTA_CHUNK_TOKENS + i] = (float)dot(c->k + t * c->key_dim, key, c->key_dim);
            q_dots[t * DELTA_CHUNK_TOKENS + i] = (float)dot(c->q + t * c->key_dim, key, c->key_dim);
        }
    }
}

/* Token by token, as gated_delta does it: the other instruction sets' algebra is tested against
 * this. */
static void delta_chunk(const struct delta_chunk* c) {
    for (size_t t = 0; t < c->num_tokens; t++) {
        const float* k = c->k + t * c->key_dim;
        const float* q = c->q + t * c->key_dim;
        for (size_t row = 0; row < c->value_dim; row++) {
            double known = 0.0;
            for (size_t d = 0; d < c->key_dim; d++) {
                float* state = c->state + d * c->value_dim + row;
                *state *= c->decay[t];
                known += (double)*state * (double)k[d];
            }
            const float delta = (c->v[t * c->value_dim + row] - (float)known) * c->beta[t];
            double out = 0.0;
            for (size_t d = 0; d < c->key_dim; d++) {
                float* state = c->state + d * c->value_dim + row;
                *state += k[d] * delta;
                out += (double)*state * (double)q[d];
            }
            c->out[t * c->out_stride + row] = (float)out;
        }
    }
}

/* Input of channel c at `position` tokens before (negative) or after the start of x. */
static float conv_input(const struct causal_conv_args* args, ptrdiff_t position, size_t c) {
    const ptrdiff_t history = (ptrdiff_t)args->taps - 1;
    if (position < 0) {
        return args->state[(size_t)(position + history) * args->channels + c];
    }
    return args->x[position * args->x_token_stride + (ptrdiff_t)c];
}

static void causal_conv(const struct causal_conv_args* args, size_t token_begin, size_t token_end,
                        size_t begin, size_t end, float* out, size_t out_stride) {
    const ptrdiff_t history = (ptrdiff_t)args->taps - 1;
    for (size_t t = token_begin; t < token_end; t++) {
        for (size_t c = begin; c < end; c++) {
            float sum = 0.0f;
            for (ptrdiff_t tap = 0; tap <= history; tap++) {
                sum += args->weight[(size_t)tap * args->channels + c] *
                       conv_input(args, (ptrdiff_t)t + tap - history, c);
            }
            out[(t - token_begin) * out_stride + c - begin] = silu(sum);
        }
    }
}

static void top_k(const float* logits, size_t num_experts, size_t count, enum score_mode mode,
                  int32_t* indices, float* scores) {
    heap_of_first(logits, indices, count);
    for (size_t i = count; i < num_experts; i++) {
        offer(logits, indices, count, (int32_t)i);
    }
    sort_best_first(logits, indices, count);
    const float largest = logits[indices[0]];
    double total = 0.0;
    int poisoned = 0;
    for (size_t i = 0; i < num_experts; i++) {
        poisoned |= isnan(logits[i]) != 0;
        total += mode == SCORES_OF_ALL ? (double)expf(logits[i] - largest) : 0.0;
    }
    for (size_t i = 0; i < count; i++) {
        scores[i] = expf(logits[indices[i]] - largest);
        total += mode == SCORES_OF_SELECTED ? (double)scores[i] : 0.0;
    }
    for (size_t i = 0; i < count; i++) {
        scores[i] = poisoned ? NAN : scores[i] / (float)total;
    }
}

const struct vector_ops kandiga_vector_scalar = {
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .rms_norm_gated = rms_norm_gated,
    .l2_normalize = l2_normalize,
    .add = add,
    .silu_mul = silu_mul,
    .sigmoid_mul = sigmoid_mul,
    .scale_add = scale_add,
    .exponential = exponential,
    .store_half = store_half,
    .rope = rope,
    .attention = attention,
    .gated_delta = gated_delta,
    .delta_chunk_dots = delta_chunk_dots,
    .delta_chunk = delta_chunk,
    .causal_conv = causal_conv,
    .top_k = top_k,
};
