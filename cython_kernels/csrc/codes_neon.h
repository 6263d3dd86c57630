/* Codes as bytes, 16 at a time, for the NEON files that include quant_int_body.inc. */
#ifndef KANDIGA_CODES_NEON_H
#define KANDIGA_CODES_NEON_H

#include "quant_ops.h"
#include "quant_windows.h"
#include "simd_neon.h"

enum { CODE_BYTES = 16 };

typedef uint8x16_t code_bytes; /* one code a byte */
typedef int32x4_t code_sums;

static inline code_sums no_sums(void) {
    return vdupq_n_s32(0);
}

static inline code_sums times_256(code_sums sums) {
    return vshlq_n_s32(sums, 8);
}

static inline vf to_floats(code_sums sums) {
    return vcvtq_f32_s32(sums);
}

/* scales[lane / 2] in each lane: never more than two groups to four lanes. */
static inline vf spread_scales(const float* scales, int num_groups) {
    (void)num_groups;
    return vcombine_f32(vdup_n_f32(scales[0]), vdup_n_f32(scales[1]));
}

/* The 2 * bits bytes of 16 codes in two overlapping runs of eight, which pass no end. */
static inline uint8x16_t load_sixteen(int bits, const uint8_t* p) {
    if (bits > 3)
        return vcombine_u8(vld1_u8(p), vld1_u8(p + 2 * bits - 8));
    uint8_t bytes[8] = {0};
    memcpy(bytes, p, 6);
    return vcombine_u8(vld1_u8(bytes), vld1_u8(bytes));
}

static inline uint8x8_t eight_codes(int bits, uint8x16_t bytes, int first_byte) {
    const uint8x16_t windows =
        vaddq_u8(vld1q_u8(kandiga_short_windows[bits]), vdupq_n_u8((uint8_t)first_byte));
    const uint16x8_t shorts = vreinterpretq_u16_u8(vqtbl1q_u8(bytes, windows));
    const uint16x8_t factors = vld1q_u16(kandiga_short_factors[bits]);
    return vmovn_u16(vshlq_u16(vmulq_u16(shorts, factors), vdupq_n_s16((int16_t)(bits - 16))));
}

/* Code k of each byte of a chunk to codes[k]. */
static inline void take_codes(int bits, const uint8_t* p, code_bytes codes[4]) {
    if (bits == 2 || bits == 4 || bits == 8) {
        const uint8x16_t packed = vld1q_u8(p), mask = vdupq_n_u8((uint8_t)((1 << bits) - 1));
        for (int k = 0; k < 8 / bits; k++)
            codes[k] = vandq_u8(vshlq_u8(packed, vdupq_n_s8((int8_t)(-bits * k))), mask);
    } else {
        const uint8x16_t bytes = load_sixteen(bits, p);
        codes[0] = vcombine_u8(eight_codes(bits, bytes, 0),
                               eight_codes(bits, bytes, bits > 3 ? 16 - bits : bits));
    }
}

/* The same for the last n bytes of a row; codes beyond are zero. */
static inline void take_codes_part(int bits, const uint8_t* p, size_t n, code_bytes codes[4]) {
    uint8_t bytes[CODE_BYTES] = {0};
    memcpy(bytes, p, n);
    take_codes(bits, bytes, codes);
}

/* Signed bytes: codes of 8 bits less 128, which add_products then puts back. */
static inline int8x16_t signed_codes(int bits, code_bytes codes) {
    return vreinterpretq_s8_u8(bits == 8 ? veorq_u8(codes, vdupq_n_u8(0x80)) : codes);
}

#endif
