/* The public vector calls: they walk strided rows, share the work over the thread pool and pick the
 * kernels of the instruction set in use. Callers have checked every shape. Results do not depend on
 * the number of threads. */
#ifndef KANDIGA_VECTOR_H
#define KANDIGA_VECTOR_H

#include "vector_ops.h"

/* A float32 array (n0, n1, width): the last axis is contiguous, the outer two have any stride, in
 * floats. */
struct rows {
    float* data;
    size_t n0, n1, width;
    ptrdiff_t stride0, stride1;
};

/* Most rotated pairs of a head that rope takes: angles live on the stack. */
enum { ROPE_MAX_PAIRS = 1024 };

void vector_rms_norm(const struct rows* x, const float* weight, float eps, const struct rows* out);
void vector_add_rms_norm(const struct rows* x, const struct rows* delta, const float* weight,
                         float eps, const struct rows* out);
void vector_rms_norm_gated(const struct rows* x, const struct rows* gate, const float* weight,
                           float eps, const struct rows* out);
void vector_l2_normalize(const struct rows* x, float eps, float scale);
void vector_add(const struct rows* x, const struct rows* y);
void vector_silu_mul(const struct rows* gate, const struct rows* up, const struct rows* out);
void vector_sigmoid_mul(const struct rows* x, const struct rows* gate, const struct rows* out);
/* gate has one column. */
void vector_sigmoid_scale_add(const struct rows* x, const struct rows* gate,
                              const struct rows* out);
void vector_exp(const struct rows* x, const struct rows* out);
void vector_copy(const struct rows* x, const struct rows* out);

/* Rotate the first 2 * pairs dims of each head of x (tokens, heads, head_dim); token t has position
 * offset + t. */
void vector_rope(const struct rows* x, const float* inv_freq, size_t pairs, int64_t offset,
                 int traditional, float scale);

/* Write x (tokens, heads, head_dim) into cache (heads, capacity, head_dim) from position offset on.
 */
void vector_kv_append(const struct rows* x, void* cache, ptrdiff_t head_stride,
                      ptrdiff_t position_stride, int half_cache, size_t offset);

/* out (tokens, heads, head_dim). -1 when there is no memory to merge long key ranges in. */
int vector_attention(const struct attention_args* args, const struct rows* out);

void vector_gated_delta_gates(const struct rows* a, const struct rows* b, const float* a_log,
                              const float* dt_bias, const struct rows* g_out,
                              const struct rows* beta_out);
void vector_gated_delta(const struct gated_delta_args* args);
void vector_causal_conv(const struct causal_conv_args* args);
/* Bring channels [begin, end) of args->state to the end of x; the last step of a convolution. */
void vector_causal_conv_advance(const struct causal_conv_args* args, size_t begin, size_t end);
/* out (tokens, value heads, value_dim). -1 when there is no scratch memory. */
int vector_gated_delta_heads(const struct gated_delta_heads_args* args, const struct rows* out);
void vector_expert_sum(const struct expert_sum_args* args);
void vector_top_k(const struct rows* logits, size_t top_k, enum score_mode mode, int32_t* indices,
                  float* scores);

#endif
