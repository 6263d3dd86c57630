/* Integer arithmetic for NEON with dotprod. */
#include "codes_neon.h"

static inline code_sums add_products(int bits, code_sums sums, code_bytes codes,
                                     const int8_t* steps) {
    const int8x16_t x = vld1q_s8(steps);
    if (bits == 8) {
        sums = vdotq_s32(sums, vdupq_n_s8(64), x);
        sums = vdotq_s32(sums, vdupq_n_s8(64), x);
    }
    return vdotq_s32(sums, signed_codes(bits, codes), x);
}

#include "quant_int_body.inc"

const struct quant_ops kandiga_quant_neondot = {
    .prepare_int = prepare_int,
    .rows_int = rows_int,
};
