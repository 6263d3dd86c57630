/* Rounding x to whole steps: the same integers on every instruction set. */
#ifndef KANDIGA_QUANT_STEPS_H
#define KANDIGA_QUANT_STEPS_H

#include "quant_ops.h"

/* A group whose largest |x| is below this becomes zero: most / |x| would pass the largest float. */
#define KANDIGA_LEAST_X 0x1p-100f

/*
 * steps[i] = x[i] / step to the nearest integer, ties to even, for i < n <= 128. Returns the step,
 * the largest |x| divided by `most`; NaN, with all steps zero, when an x is infinite or NaN.
 */
static inline float kandiga_round_to_steps(const float* x, size_t n, float most, int16_t* steps) {
    /* As integers: magnitudes have the order of their bits, and NaN comes out above infinity. */
    uint32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    float most_x;
    memcpy(&most_x, &largest, sizeof most_x);
    if (largest >= 0x7f800000u || most_x < KANDIGA_LEAST_X) {
        const uint32_t quiet_nan = 0x7fc00000u;
        memset(steps, 0, n * sizeof *steps);
        memcpy(&most_x, &quiet_nan, sizeof most_x);
        return largest >= 0x7f800000u ? most_x : 0.0f;
    }
    const float per_x = most / most_x;
    float scaled[128];
    for (size_t i = 0; i < n; i++)
        scaled[i] = x[i] * per_x;
    /* Or the compiler may make one fused operation of the product above and the sum below, which
     * rounds once where others round twice. */
    __asm__ volatile("" : : "r"(scaled) : "memory");
    for (size_t i = 0; i < n; i++) {
        /* The sum's last bit is worth 1, so it is rounded as the processor rounds. */
        const float shifted = scaled[i] + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        steps[i] = (int16_t)(bits - 0x4b400000);
    }
    return most_x / most;
}

static inline float kandiga_most_steps(const struct kandiga_matrix* w) {
    return w->arithmetic == KANDIGA_INT8 ? KANDIGA_MAX_INT8 : KANDIGA_MAX_INT16;
}

#endif
