#include "simd_neon.h"

#include "turboquant_halves.inc"

#include "turboquant_encode.inc"

typedef int32x4_t ti;
enum { KEY_BIAS = 0, REGISTER_ROWS = 4 };

static inline ti ti_set(int32_t x) {
    return vdupq_n_s32(x);
}

static inline ti ti_add_keys(ti sum, const uint8_t* levels, int32_t word) {
    const int8x16_t a = vld1q_s8((const int8_t*)levels);
    const int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(word));
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sum, a, b);
#else
    /* Products of two pairs fit 16 bits only one at a time: widen before adding. */
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(a), vget_high_s8(b)));
    return vaddq_s32(sum, vpaddq_s32(low, high));
#endif
}

/* Weights are below 128, so they are signed bytes too. */
static inline ti ti_add_values(ti sum, const uint8_t* levels, int32_t word) {
    return ti_add_keys(sum, levels, word);
}

static inline vf ti_to_float(ti x) {
    return vcvtq_f32_s32(x);
}

static inline void store_bytes(ti x, uint8_t* out) {
    const int16x4_t words = vmovn_s32(x);
    const uint8x8_t bytes = vmovn_u16(vreinterpretq_u16_s16(vcombine_s16(words, words)));
    vst1_lane_u32((uint32_t*)(void*)out, vreinterpret_u32_u8(bytes), 0);
}

static inline void store_weights(vf w, uint8_t* high, uint8_t* low) {
    const ti whole = vcvtnq_s32_f32(w);
    store_bytes(vshrq_n_s32(whole, 7), high);
    store_bytes(vandq_s32(whole, vdupq_n_s32(127)), low);
}

/* Bytes of ones where the sign bits of 16 codes are set. */
static inline uint8x16_t sign_bytes(const uint8_t* signs) {
    const uint8x16_t bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull));
    return vtstq_u8(vcombine_u8(vdup_n_u8(signs[0]), vdup_n_u8(signs[1])), bits);
}

/* bits is a constant at every call. */
static inline __attribute__((always_inline)) void unpack_unit(int bits, const uint8_t* packed,
                                                              const uint8_t* signs,
                                                              const int8_t* table, int bias,
                                                              uint8_t* levels) {
    const int8x16_t known = vld1q_s8(table);
    (void)bias;
    for (int part = 0; part < 4; part++) {
        uint8x16_t codes = vdupq_n_u8(0);
        if (bits == 8) {
            vst1q_u8(levels + 16 * part, vld1q_u8(packed + 16 * part));
            continue;
        }
        if (bits == 4) {
            const int8x16_t shift = vdupq_n_s8((int8_t)(-4 * (part / 2)));
            codes = vandq_u8(vshlq_u8(vld1q_u8(packed + 16 * (part % 2)), shift), vdupq_n_u8(15));
        } else if (bits >= 2) {
            const int8x16_t shift = vdupq_n_s8((int8_t)(-2 * part));
            codes = vandq_u8(vshlq_u8(vld1q_u8(packed), shift), vdupq_n_u8(3));
        }
        if (bits == 3 || bits == 1) {
            const uint8x16_t sign = vdupq_n_u8(bits == 3 ? 4 : 1);
            codes = vorrq_u8(codes, vandq_u8(sign_bytes(signs + 2 * part), sign));
        }
        vst1q_s8((int8_t*)levels + 16 * part, vqtbl1q_s8(known, codes));
    }
}

#ifndef TURBOQUANT_TABLE
#define TURBOQUANT_TABLE kandiga_turboquant_neon
#endif
#define TURBOQUANT_PRODUCTS "turboquant_rows.inc"
#include "turboquant_attend.inc"
