/* The public calls of the compressed KV cache: they share the work over the thread pool and pick
 * the kernels of the instruction set in use. Callers have checked every shape. Results do not
 * depend on the number of threads. */
#ifndef KANDIGA_TURBOQUANT_H
#define KANDIGA_TURBOQUANT_H

#include "turboquant_ops.h"
#include "vector.h"

/* Where everything lies in a block. Bits 2, 3, 4 or 8; with has_residual, one of 3 or 4 key bits is
 * the sign of the QJL residual. head_dim 1 to TQ_MAX_HEAD_DIM. */
void turboquant_make_layout(size_t num_kv_heads, size_t head_dim, int key_bits, int value_bits,
                            int has_residual, struct turboquant_layout* layout);

/* The signs of a rotation: of the top bits of splitmix64 started at seed. */
enum { TQ_KEY_SEED = 1, TQ_VALUE_SEED = 2, TQ_RESIDUAL_SEED = 3 };
void turboquant_signs(uint64_t seed, size_t count, float* signs);

/* Code 128 tokens of keys and values (num_kv_heads, 128, head_dim), halves, into a block. energies
 * (num_kv_heads, head_dim): what queries have in each channel; NULL or zeros when nothing is known.
 */
void turboquant_encode(const struct turboquant_layout* layout, const uint16_t* keys,
                       const uint16_t* values, ptrdiff_t head_stride, ptrdiff_t token_stride,
                       const float* energies, uint8_t* block);

/* Add the squares of query rows, token by token, to the energies of their KV heads. */
void turboquant_add_energies(const struct rows* q, size_t num_kv_heads, float* energies);

/* Decode one record's keys or values: out (128, head_dim) float. */
void turboquant_decode(const struct turboquant_layout* layout, const uint8_t* record, int is_keys,
                       float* out);

/* Coded tokens, all of them seen by every query, and uncoded ones, which are causal. */
struct turboquant_cache {
    const struct turboquant_layout* layout;
    const uint8_t* const* blocks;
    const int32_t* counts; /* tokens of each block, 1 to 128 */
    size_t num_blocks;
};

/* args: queries, and the uncoded tokens as keys and values in halves. out (tokens, heads,
 * head_dim). -1 when there is no memory for partial sums. */
int turboquant_attention(const struct turboquant_cache* cache, const struct attention_args* args,
                         const struct rows* out);

#endif
