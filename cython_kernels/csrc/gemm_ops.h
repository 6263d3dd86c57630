#ifndef KANDIGA_GEMM_OPS_H
#define KANDIGA_GEMM_OPS_H

#include "quant_ops.h"

/* Tokens of a panel, the unit in which x is brought into the order of the kernels. */
#define KANDIGA_PANEL_TOKENS 16
/* Most panels in one call of `rows`. */
#define KANDIGA_MAX_PANELS 16

/*
 * Matrix times many tokens, for an instruction set with a matrix unit; all single-threaded. A table
 * of NULLs where there is none: such a machine computes any number of tokens with quant_ops.
 */
struct gemm_ops {
    /* Whether W's format is served; others go through quant_ops whatever the number of tokens. */
    int (*serves)(const struct kandiga_matrix* w);

    /* Bytes of a panel, a multiple of 64. */
    size_t (*panel_bytes)(const struct kandiga_matrix* w);

    /*
     * Bring x[t] (in_features), 1 <= num_tokens <= KANDIGA_PANEL_TOKENS, into a panel at a 64-byte
     * boundary. It serves every matrix for which kandiga_same_panel holds.
     */
    void (*prepare)(const struct kandiga_matrix* w, const float* const* x, size_t num_tokens,
                    void* panel);

    /*
     * out[t * out_stride + r - row_begin] = (x_t W^T + bias)[r], rows row_begin <= r < row_end, for
     * num_tokens tokens in consecutive panels, all full but the last.
     */
    void (*rows)(const struct kandiga_matrix* w, const void* panels, size_t num_tokens,
                 size_t row_begin, size_t row_end, float* out, size_t out_stride);
};

extern const struct gemm_ops kandiga_gemm_amx;     /* KANDIGA_EXACT */
extern const struct gemm_ops kandiga_gemm_int_amx; /* KANDIGA_INT16 and KANDIGA_INT8 */

/* Whether a panel prepared for a serves b. */
static inline int kandiga_same_panel(const struct kandiga_matrix* a,
                                     const struct kandiga_matrix* b) {
    return a->in_features == b->in_features && (a->bits == 0) == (b->bits == 0) &&
           a->arithmetic == b->arithmetic &&
           (a->arithmetic == KANDIGA_EXACT || a->group_size == b->group_size);
}

#endif
