/* The matrix kernels for the aarch64 baseline. What the functions give is said in quant_avx512.c.
 */
#include "codes_neon.h"

/* 4 rows x 6 tokens are 24 sums, which leaves 8 of 32 registers for weights and x. */
enum { TILE_ROWS = 4, TILE_TOKENS = 6 };

typedef uint32x4_t words;

static inline words load_words(const uint8_t* p) {
    return vreinterpretq_u32_u8(vld1q_u8(p));
}

/* n is 2: rows are whole units of 32 codes, and only of 2 bits is that half a vector of words. */
static inline words load_words_part(const uint8_t* p, size_t n) {
    (void)n;
    return vreinterpretq_u32_u8(vcombine_u8(vld1_u8(p), vdup_n_u8(0)));
}

static inline vf word_codes(words w, int bits, int k) {
    int shift = bits * k;
    if (shift == 32 - bits)
        return vcvtq_f32_u32(vshlq_u32(w, vdupq_n_s32(-shift)));
    uint32_t mask = ((1u << bits) - 1) << shift;
    return vcvtq_f32_u32(vandq_u32(w, vdupq_n_u32(mask)));
}

/* Byte indices for vqtbl1q_u8. */
static inline words lane_groups(int lanes_per_group) {
    uint8_t index[16];
    for (int byte = 0; byte < 16; byte++)
        index[byte] = (uint8_t)(byte / 4 / lanes_per_group * 4 + byte % 4);
    return vreinterpretq_u32_u8(vld1q_u8(index));
}

static inline vf spread(const float* values, words groups) {
    uint8x16_t bytes = vreinterpretq_u8_f32(vld1q_f32(values));
    return vreinterpretq_f32_u8(vqtbl1q_u8(bytes, vreinterpretq_u8_u32(groups)));
}

/* 16 codes of 8 bits. */
static inline void byte_codes(const uint8_t* p, vf codes[4]) {
    uint8x16_t bytes = vld1q_u8(p);
    uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    codes[0] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(low)));
    codes[1] = vcvtq_f32_u32(vmovl_high_u16(low));
    codes[2] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(high)));
    codes[3] = vcvtq_f32_u32(vmovl_high_u16(high));
}

static inline void unit_codes(int bits, const uint8_t* unit, vf codes[8]) {
    if (bits == 8) {
        byte_codes(unit, codes);
        byte_codes(unit + 16, codes + 4);
        return;
    }
    for (int piece = 0; piece < 4; piece++) {
        const uint8_t* at = unit + kandiga_piece_load(bits, piece, 8, 8);
        uint8x16_t bytes = vcombine_u8(vld1_u8(at), vdup_n_u8(0));
        uint8x16_t delay = vdupq_n_u8((uint8_t)kandiga_piece_delay(bits, piece, 8, 8));
        for (int half = 0; half < 2; half++) {
            uint8x16_t control = vaddq_u8(vld1q_u8(kandiga_windows[bits] + 16 * half), delay);
            uint32x4_t windows = vreinterpretq_u32_u8(vqtbl1q_u8(bytes, control));
            uint32x4_t masks = vld1q_u32(kandiga_masks[bits] + 4 * half);
            codes[2 * piece + half] = vcvtq_f32_u32(vandq_u32(windows, masks));
        }
    }
}

#include "quant_body.inc"

static inline code_sums add_products(int bits, code_sums sums, code_bytes codes,
                                     const int8_t* steps) {
    const int8x16_t x = vld1q_s8(steps), factors = signed_codes(bits, codes);
    int16x8_t low = vmull_s8(vget_low_s8(factors), vget_low_s8(x));
    int16x8_t high = vmull_high_s8(factors, x);
    if (bits < 8) /* two products of 6 and 8 bits fit 16, of 8 and 8 do not */
        return vpadalq_s16(sums, vpaddq_s16(low, high));
    sums = vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
    low = vshll_n_s8(vget_low_s8(x), 7);
    high = vshll_high_n_s8(x, 7);
    return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}

#include "quant_int_body.inc"

const struct quant_ops kandiga_quant_neon = {
    .prepare = prepare,
    .rows = rows,
    .prepare_int = prepare_int,
    .rows_int = rows_int,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
};
