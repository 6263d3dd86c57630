#ifndef KANDIGA_MATMUL_H
#define KANDIGA_MATMUL_H

#include "quant_ops.h"

/* Most matrices in one kandiga_matmul_many. */
#define KANDIGA_MAX_MATRICES 16

/*
 * outs[m] (num_tokens, out_features of m) = x (num_tokens, in_features) W_m^T + bias_m, all
 * matrices with the same in_features, in one parallel region. 0, or -1 when scratch memory ran out.
 */
int kandiga_matmul_many(const struct kandiga_matrix* const* matrices, float* const* outs,
                        size_t num_matrices, const float* x, size_t num_tokens);

/* out (num_ids, in_features) = rows ids[i] of W; 0 <= ids[i] < out_features. */
void kandiga_embed_rows(const struct kandiga_matrix* w, const int32_t* ids, size_t num_ids,
                        float* out);

#endif
