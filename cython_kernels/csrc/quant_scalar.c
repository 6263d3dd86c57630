#include "quant_ops.h"
#include "quant_steps.h"
#include <math.h>
#include <string.h>

/* The reference: written to be read. Every faster file is compared with this one. */

static float load_float(const void* data, enum kandiga_dtype dtype, size_t index) {
    if (dtype == KANDIGA_F32) {
        float value;
        memcpy(&value, (const char*)data + 4 * index, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char*)data + 2 * index, 2);
    return dtype == KANDIGA_BF16 ? kandiga_bf16_to_f32(half) : half_to_float(half);
}

/* Code number `index` of a row: `bits` bits from bit index * bits on, lowest first. */
static unsigned load_code(const uint8_t* row, int bits, size_t index) {
    size_t first_bit = index * (size_t)bits;
    unsigned shift = first_bit % 8;
    unsigned window = row[first_bit / 8];
    if (shift + (unsigned)bits > 8)
        window |= (unsigned)row[first_bit / 8 + 1] << 8;
    return window >> shift & ((1u << bits) - 1);
}

void kandiga_weight_row(const struct kandiga_matrix* w, size_t row, size_t begin, size_t end,
                        float* out) {
    if (w->bits == 0) {
        for (size_t i = begin; i < end; i++)
            out[i - begin] = load_float(w->weight, w->dtype, row * w->in_features + i);
        return;
    }
    size_t group_size = (size_t)w->group_size;
    const uint8_t* codes = (const uint8_t*)w->weight + row * (w->in_features * (size_t)w->bits / 8);
    size_t first_group = row * (w->in_features / group_size);
    for (size_t i = begin; i < end; i++) {
        float scale = load_float(w->scales, w->dtype, first_group + i / group_size);
        float zero = load_float(w->zeros, w->dtype, first_group + i / group_size);
        out[i - begin] = scale * (float)load_code(codes, w->bits, i) + zero;
    }
}

static void prepare(const struct kandiga_matrix* w, const float* x, float* prepared) {
    memcpy(prepared, x, w->in_features * sizeof(float));
}

static void rows(const struct kandiga_matrix* w, const float* const* prepared, size_t num_tokens,
                 size_t row_begin, size_t row_end, float* out, size_t out_stride) {
    enum { BLOCK = 128 };
    float weights[BLOCK];
    for (size_t r = row_begin; r < row_end; r++) {
        float sums[KANDIGA_MAX_TOKENS];
        for (size_t t = 0; t < num_tokens; t++)
            sums[t] = w->bias ? load_float(w->bias, w->bias_dtype, r) : 0.0f;
        for (size_t begin = 0; begin < w->in_features; begin += BLOCK) {
            size_t n = w->in_features - begin < BLOCK ? w->in_features - begin : BLOCK;
            kandiga_weight_row(w, r, begin, begin + n, weights);
            for (size_t t = 0; t < num_tokens; t++) {
                float sum = 0.0f;
                for (size_t i = 0; i < n; i++)
                    sum += weights[i] * prepared[t][begin + i];
                sums[t] += sum;
            }
        }
        for (size_t t = 0; t < num_tokens; t++)
            out[t * out_stride + r - row_begin] = sums[t];
    }
}

/* Steps of x as int16, and from here on, in floats, the step size of each group. */
static size_t step_sizes_offset(const struct kandiga_matrix* w) {
    return w->in_features / 2;
}

static void prepare_int(const struct kandiga_matrix* w, const float* x, float* prepared) {
    size_t group_size = (size_t)w->group_size;
    int16_t* steps = (int16_t*)prepared;
    float* step_sizes = prepared + step_sizes_offset(w);
    for (size_t begin = 0; begin < w->in_features; begin += group_size)
        step_sizes[begin / group_size] =
            kandiga_round_to_steps(x + begin, group_size, kandiga_most_steps(w), steps + begin);
}

/* Columns of one group times a row: step * (scale * (sum of code * steps) + zero * sum of steps) */
static float group_product(const struct kandiga_matrix* w, size_t row, size_t begin,
                           const int16_t* steps, float step_size) {
    const uint8_t* codes = (const uint8_t*)w->weight + row * (w->in_features * (size_t)w->bits / 8);
    size_t group = (row * w->in_features + begin) / (size_t)w->group_size;
    int32_t product = 0, sum = 0; /* |product| <= 128 * 255 * KANDIGA_MAX_INT16 < 2^30 */
    for (size_t i = begin; i < begin + (size_t)w->group_size; i++) {
        product += (int32_t)load_code(codes, w->bits, i) * steps[i];
        sum += steps[i];
    }
    float scaled = load_float(w->scales, w->dtype, group) * step_size * (float)product;
    return scaled + load_float(w->zeros, w->dtype, group) * (step_size * (float)sum);
}

static void rows_int(const struct kandiga_matrix* w, const float* const* prepared,
                     size_t num_tokens, size_t row_begin, size_t row_end, float* out,
                     size_t out_stride) {
    size_t group_size = (size_t)w->group_size;
    for (size_t t = 0; t < num_tokens; t++) {
        const int16_t* steps = (const int16_t*)prepared[t];
        const float* step_sizes = prepared[t] + step_sizes_offset(w);
        for (size_t r = row_begin; r < row_end; r++) {
            float sum = w->bias ? load_float(w->bias, w->bias_dtype, r) : 0.0f;
            for (size_t begin = 0; begin < w->in_features; begin += group_size)
                sum += group_product(w, r, begin, steps, step_sizes[begin / group_size]);
            out[t * out_stride + r - row_begin] = sum;
        }
    }
}

static void swiglu(const float* gate, const float* up, float* out, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static void add_scaled(float scale, const float* x, float* y, size_t n) {
    for (size_t i = 0; i < n; i++)
        y[i] += scale * x[i];
}

const struct quant_ops kandiga_quant_scalar = {
    .prepare = prepare,
    .rows = rows,
    .prepare_int = prepare_int,
    .rows_int = rows_int,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
};
