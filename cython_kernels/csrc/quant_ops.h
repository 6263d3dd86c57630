#ifndef KANDIGA_QUANT_OPS_H
#define KANDIGA_QUANT_OPS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "float16.h"

enum kandiga_dtype { KANDIGA_F32, KANDIGA_F16, KANDIGA_BF16 };

/*
 * How x takes part in x W^T. EXACT: in float32. INT16, INT8: rounded to a whole number of steps,
 * the same step in each group of the weight's columns, and multiplied with the codes as integers.
 * The step is the largest |x| of the group divided by KANDIGA_MAX_INT16 or KANDIGA_MAX_INT8.
 */
enum kandiga_arithmetic { KANDIGA_EXACT, KANDIGA_INT16, KANDIGA_INT8 };

/* 127 * 256 + 127: two signed bytes, of which the upper one is never -128. */
#define KANDIGA_MAX_INT16 32639
#define KANDIGA_MAX_INT8 127

/* Most tokens one call of a `rows` function serves; callers walk longer inputs in such blocks. */
#define KANDIGA_MAX_TOKENS 64

/*
 * A weight W (out_features, in_features) and what it takes to compute y = x W^T + bias.
 *
 * bits > 0: affine quantized in MLX byte order. A row is in_features codes of `bits` bits, packed
 * from the lowest bit of the first byte on, without gaps; W = scale * code + zero, one scale and
 * zero (MLX calls them scales and biases) for each group_size columns. in_features is a multiple of
 * group_size, so a row is a whole number of 32-bit words.
 * bits == 0: rows of in_features numbers of `dtype`.
 */
struct kandiga_matrix {
    const void* weight; /* any alignment */
    const void* scales; /* (out_features, in_features / group_size) of `dtype`; also `zeros` */
    const void* zeros;
    const void* bias; /* (out_features) of `bias_dtype`, or NULL */
    size_t out_features;
    size_t in_features;
    int bits;       /* 0, 2, 3, 4, 5, 6, 8 */
    int group_size; /* 32, 64, 128 */
    enum kandiga_dtype dtype;
    enum kandiga_dtype bias_dtype;
    enum kandiga_arithmetic arithmetic; /* EXACT where bits == 0: there are no codes */
};

/*
 * One instruction set's functions, all single-threaded; a NULL entry falls back to the next simpler
 * instruction set's. Function pointers only.
 */
struct quant_ops {
    /*
     * Bring one token's x (in_features) into the order in which `rows` wants it, with the group
     * sums it needs: kandiga_prepared_floats(in_features) floats at a 64-byte boundary. The result
     * serves every matrix with the same in_features and bits.
     */
    void (*prepare)(const struct kandiga_matrix* w, const float* x, float* prepared);

    /* out[t * out_stride + r - row_begin] = (x_t W^T + bias)[r], rows row_begin <= r < row_end. */
    void (*rows)(const struct kandiga_matrix* w, const float* const* prepared, size_t num_tokens,
                 size_t row_begin, size_t row_end, float* out, size_t out_stride);

    /*
     * The same for integer arithmetic. What prepare_int makes serves every matrix of the same
     * in_features, bits, group_size and arithmetic. A pair always comes from one file.
     */
    void (*prepare_int)(const struct kandiga_matrix* w, const float* x, float* prepared);
    void (*rows_int)(const struct kandiga_matrix* w, const float* const* prepared,
                     size_t num_tokens, size_t row_begin, size_t row_end, float* out,
                     size_t out_stride);

    /* out[i] = silu(gate[i]) * up[i]; out may be gate. */
    void (*swiglu)(const float* gate, const float* up, float* out, size_t n);

    /* y[i] += scale * x[i] */
    void (*add_scaled)(float scale, const float* x, float* y, size_t n);
};

extern const struct quant_ops kandiga_quant_scalar;
extern const struct quant_ops kandiga_quant_avx2;
extern const struct quant_ops kandiga_quant_avx2vnni;
extern const struct quant_ops kandiga_quant_avx512;
extern const struct quant_ops kandiga_quant_avx512vnni;
extern const struct quant_ops kandiga_quant_neon;
extern const struct quant_ops kandiga_quant_neondot;

/* Columns begin <= i < end of a row of W as float32. The same code whatever the instruction set. */
void kandiga_weight_row(const struct kandiga_matrix* w, size_t row, size_t begin, size_t end,
                        float* out);

static inline float kandiga_bf16_to_f32(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline size_t kandiga_round_up(size_t n, size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* Whether what `prepare` makes for one matrix of some in_features serves the other. */
static inline int kandiga_same_order(const struct kandiga_matrix* a,
                                     const struct kandiga_matrix* b) {
    return a->bits == b->bits && a->arithmetic == b->arithmetic &&
           (a->arithmetic == KANDIGA_EXACT || a->group_size == b->group_size);
}

/*
 * Columns, padded to the longest chunk an instruction set works in (256 codes: 2 bits, AVX-512),
 * then the sums over groups of 32, of 64 and of 128 columns.
 */
static inline size_t kandiga_prepared_floats(size_t in_features) {
    return kandiga_round_up(in_features, 256) + kandiga_round_up(in_features / 32, 16) +
           kandiga_round_up(in_features / 64, 16) + kandiga_round_up(in_features / 128, 16);
}

#endif
