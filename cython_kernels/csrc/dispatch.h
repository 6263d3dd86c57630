#ifndef KANDIGA_DISPATCH_H
#define KANDIGA_DISPATCH_H

#include "gemm_ops.h"
#include "quant_ops.h"
#include "turboquant_ops.h"
#include "vector_ops.h"

/*
 * The kernels in use: one table of function pointers per room, filled for one instruction set, with
 * the scalar function wherever that instruction set has none.
 */
extern struct quant_ops kandiga_quant;
extern struct vector_ops kandiga_vector;
/* For exact and for integer arithmetic. All NULL unless the instruction set has a matrix unit. */
extern struct gemm_ops kandiga_gemm, kandiga_gemm_int;
extern struct turboquant_ops kandiga_turboquant;

/* The table for the arithmetic of the matrix. */
static inline const struct gemm_ops* kandiga_gemm_of(const struct kandiga_matrix* w) {
    return w->arithmetic == KANDIGA_EXACT ? &kandiga_gemm : &kandiga_gemm_int;
}

/*
 * Whether several rows must give, bit for bit, what each gives alone: sequences decoded together.
 * Matrix units and exact arithmetic sum in another order for several rows than for one; integer
 * kernels do not. Not to be changed while a kernel runs.
 */
extern int kandiga_rows_as_alone;

/* The two steps of y = x W^T in the arithmetic of the matrix. */
static inline void kandiga_prepare(const struct kandiga_matrix* w, const float* x,
                                   float* prepared) {
    (w->arithmetic == KANDIGA_EXACT ? kandiga_quant.prepare : kandiga_quant.prepare_int)(w, x,
                                                                                         prepared);
}

static inline void kandiga_rows(const struct kandiga_matrix* w, const float* const* prepared,
                                size_t num_tokens, size_t row_begin, size_t row_end, float* out,
                                size_t out_stride) {
    if (w->arithmetic != KANDIGA_EXACT) {
        kandiga_quant.rows_int(w, prepared, num_tokens, row_begin, row_end, out, out_stride);
    } else if (!kandiga_rows_as_alone) {
        kandiga_quant.rows(w, prepared, num_tokens, row_begin, row_end, out, out_stride);
    } else { /* the weights of these rows stay in a cache from token to token */
        for (size_t t = 0; t < num_tokens; t++)
            kandiga_quant.rows(w, prepared + t, 1, row_begin, row_end, out + t * out_stride,
                               out_stride);
    }
}

/* Fill the tables for isa, which must be available. Not to be called while a kernel runs. */
void kandiga_select_isa(int isa);

/* The instruction set last selected. */
int kandiga_selected_isa(void);

/* The fastest available instruction set. */
int kandiga_best_isa(void);

#endif
