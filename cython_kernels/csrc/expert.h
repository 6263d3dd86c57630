#ifndef KANDIGA_EXPERT_H
#define KANDIGA_EXPERT_H

#include "quant_ops.h"

/* One projection of an expert: where its parts lie in the expert's block. */
struct kandiga_projection {
    struct kandiga_matrix matrix; /* its pointers are unset: they depend on the block */
    size_t weight_offset;
    size_t scales_offset;
    size_t zeros_offset;
    size_t bias_offset;
    int has_bias;
};

/* y = down(silu(gate(x)) * up(x)); gate and up (intermediate, hidden), down (hidden, intermediate)
 */
struct kandiga_expert_layout {
    struct kandiga_projection gate, up, down;
};

/* The projection of the expert whose block begins at `address`. */
static inline struct kandiga_matrix kandiga_bind(const struct kandiga_projection* p,
                                                 uint64_t address) {
    struct kandiga_matrix w = p->matrix;
    const char* block = (const char*)(uintptr_t)address;
    w.weight = block + p->weight_offset;
    w.scales = block + p->scales_offset;
    w.zeros = block + p->zeros_offset;
    w.bias = p->has_bias ? block + p->bias_offset : NULL;
    return w;
}

/* Floats of scratch kandiga_expert_mlp needs for num_rows rows; bounded, however many rows. */
size_t kandiga_expert_scratch_floats(const struct kandiga_expert_layout* layout, size_t num_rows);

/*
 * Expert j, whose block starts at addresses[j], serves tokens rows[r] of x (num_tokens, hidden) for
 * row_offsets[j] <= r < row_offsets[j + 1], and writes its result for each to row r of out
 * (num_rows, hidden). 0, or -1 when the pool's scratch memory ran out.
 */
int kandiga_expert_mlp(const struct kandiga_expert_layout* layout, const uint64_t* addresses,
                       size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                       const float* x, size_t num_tokens, float* out, float* scratch);

/*
 * out[t] += sum over k of scores[t, k] * expert_out[order[t * top_k + k]], k ascending, for out
 * (num_tokens, hidden): the same sum in the same order on every run.
 */
void kandiga_moe_combine(const float* expert_out, const float* scores, const int32_t* order,
                         size_t num_tokens, size_t top_k, size_t hidden_size, float* out);

#endif
