#ifndef KANDIGA_GEMM_H
#define KANDIGA_GEMM_H

#include "expert.h"

/* Whether so many tokens times this matrix are computed by the functions below. */
int kandiga_gemm_serves(const struct kandiga_matrix* w, size_t num_tokens);

/* kandiga_matmul_many for matrices that are all served. */
int kandiga_gemm_matmul_many(const struct kandiga_matrix* const* matrices, float* const* outs,
                             size_t num_matrices, const float* x, size_t num_tokens);

/* Whether an expert with so many rows is. */
int kandiga_gemm_serves_expert(const struct kandiga_expert_layout* layout, size_t num_rows);

/*
 * kandiga_expert_mlp for the experts that are served; the others' rows of out are left alone. 0, or
 * -1 when scratch memory ran out. The caller holds the pool.
 */
int kandiga_gemm_expert_mlp(const struct kandiga_expert_layout* layout, const uint64_t* addresses,
                            size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                            const float* x, float* out);

#endif
