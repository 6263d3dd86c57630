/* The names of simd_avx2.h, for the aarch64 baseline. */
#ifndef KANDIGA_SIMD_NEON_H
#define KANDIGA_SIMD_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

enum { VF_LANES = 4, VF_REGISTERS = 32 };
typedef float32x4_t vf;

static inline vf vf_zero(void) {
    return vdupq_n_f32(0.0f);
}

static inline vf vf_set(float x) {
    return vdupq_n_f32(x);
}

static inline vf vf_load(const float* p) {
    return vld1q_f32(p);
}

static inline vf vf_load_part(const float* p, size_t n) {
    float lanes[4] = {0.0f};
    for (size_t i = 0; i < n; i++) {
        lanes[i] = p[i];
    }
    return vld1q_f32(lanes);
}

static inline void vf_store(float* p, vf x) {
    vst1q_f32(p, x);
}

static inline void vf_store_part(float* p, vf x, size_t n) {
    float lanes[4];
    vst1q_f32(lanes, x);
    for (size_t i = 0; i < n; i++) {
        p[i] = lanes[i];
    }
}

static inline vf vf_load_half(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

static inline vf vf_load_half_part(const uint16_t* p, size_t n) {
    uint16_t lanes[4] = {0};
    for (size_t i = 0; i < n; i++) {
        lanes[i] = p[i];
    }
    return vf_load_half(lanes);
}

static inline vf vf_load_bf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

static inline vf vf_load_bf16_part(const uint16_t* p, size_t n) {
    uint16_t lanes[4] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return vf_load_bf16(lanes);
}

static inline void vf_store_half(uint16_t* p, vf x) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}

static inline vf vf_add(vf a, vf b) {
    return vaddq_f32(a, b);
}

static inline vf vf_sub(vf a, vf b) {
    return vsubq_f32(a, b);
}

static inline vf vf_mul(vf a, vf b) {
    return vmulq_f32(a, b);
}

static inline vf vf_div(vf a, vf b) {
    return vdivq_f32(a, b);
}

static inline vf vf_fma(vf a, vf b, vf c) {
    return vfmaq_f32(c, a, b);
}

static inline vf vf_max(vf a, vf b) {
    return vmaxq_f32(a, b);
}

static inline vf vf_min(vf a, vf b) {
    return vminq_f32(a, b);
}

static inline vf vf_round(vf x) {
    return vrndnq_f32(x);
}

static inline vf vf_power_of_two(vf n) {
    const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
}

static inline vf vf_scale(vf x, vf n) {
    const vf half = vf_round(vf_mul(n, vf_set(0.5f)));
    return vf_mul(vf_mul(x, vf_power_of_two(half)), vf_power_of_two(vf_sub(n, half)));
}

static inline float vf_sum(vf x) {
    return vaddvq_f32(x);
}

static inline void vf_sum4(vf a, vf b, vf c, vf d, float sums[4]) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline float vf_largest(vf x) {
    return vmaxvq_f32(x);
}

static inline uint32_t vf_bits(uint32x4_t mask) {
    static const uint32_t lane_bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, vld1q_u32(lane_bits)));
}

static inline uint32_t vf_greater(vf a, vf b) {
    return vf_bits(vcgtq_f32(a, b));
}

static inline uint32_t vf_is_nan(vf x) {
    return vf_bits(vmvnq_u32(vceqq_f32(x, x)));
}

#endif
