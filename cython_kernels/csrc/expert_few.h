#ifndef KANDIGA_EXPERT_FEW_H
#define KANDIGA_EXPERT_FEW_H

#include "expert.h"

/* Most rows of one call, and most of one expert. */
#define KANDIGA_FEW_ROWS 64
#define KANDIGA_FEW_TOKENS 7

/* Floats of scratch for num_rows rows. */
size_t kandiga_expert_few_floats(const struct kandiga_expert_layout* layout, size_t num_rows);

/*
 * kandiga_expert_mlp for a decode step: few rows, of few tokens, so that what counts is that
 * all threads read weights all the time. scratch begins at a 64-byte boundary.
 */
void kandiga_expert_few(const struct kandiga_expert_layout* layout, const uint64_t* addresses,
                        size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                        const float* x, float* out, float* scratch);

#endif
