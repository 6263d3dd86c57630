#ifndef KANDIGA_EXPERT_FEW_H
#define KANDIGA_EXPERT_FEW_H

#include "expert.h"

/* Most rows of one call, and most of one expert. */
#define KANDIGA_FEW_ROWS 64
#define KANDIGA_FEW_TOKENS 7

/* One expert of a call, and the rows of it and of its results: num_rows from first_row on. */
struct kandiga_few {
    uint64_t address;
    size_t first_row, num_rows;
};

/* Floats of scratch for num_rows rows. */
size_t kandiga_expert_few_floats(const struct kandiga_expert_layout* layout, size_t num_rows);

/*
 * kandiga_expert_mlp for a decode step, or what a short prompt has of each expert: few rows, of few
 * tokens, so that what counts is that all threads read weights all the time. scratch begins at a
 * 64-byte boundary.
 */
void kandiga_expert_few(const struct kandiga_expert_layout* layout,
                        const struct kandiga_few* experts, size_t num_experts, const int32_t* rows,
                        const float* x, float* out, float* scratch);

#endif
