/* The names of simd_avx2.h, for AVX-512 F, BW, VL, DQ. */
#ifndef KANDIGA_SIMD_AVX512_H
#define KANDIGA_SIMD_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { VF_LANES = 16, VF_REGISTERS = 32 };
typedef __m512 vf;

static inline __mmask16 vf_mask(size_t n) {
    return (__mmask16)((1u << n) - 1u);
}

static inline vf vf_zero(void) {
    return _mm512_setzero_ps();
}

static inline vf vf_set(float x) {
    return _mm512_set1_ps(x);
}

static inline vf vf_load(const float* p) {
    return _mm512_loadu_ps(p);
}

static inline vf vf_load_part(const float* p, size_t n) {
    return _mm512_maskz_loadu_ps(vf_mask(n), p);
}

static inline void vf_store(float* p, vf x) {
    _mm512_storeu_ps(p, x);
}

static inline void vf_store_part(float* p, vf x, size_t n) {
    _mm512_mask_storeu_ps(p, vf_mask(n), x);
}

static inline vf vf_load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}

static inline vf vf_load_half_part(const uint16_t* p, size_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_mask(n), p));
}

static inline vf vf_load_bf16(const uint16_t* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline vf vf_load_bf16_part(const uint16_t* p, size_t n) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_mask(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void vf_store_half(uint16_t* p, vf x) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline vf vf_add(vf a, vf b) {
    return _mm512_add_ps(a, b);
}

static inline vf vf_sub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}

static inline vf vf_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}

static inline vf vf_div(vf a, vf b) {
    return _mm512_div_ps(a, b);
}

static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}

static inline vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}

static inline vf vf_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}

static inline vf vf_round(vf x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vf vf_scale(vf x, vf n) {
    return _mm512_scalef_ps(x, n);
}

static inline float vf_sum(vf x) {
    return _mm512_reduce_add_ps(x);
}

static inline void vf_sum4(vf a, vf b, vf c, vf d, float sums[4]) {
    /* Fold each vector to eight lanes, two to a register, then as AVX2 does. */
    const vf ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const vf cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    const __m256 low = _mm256_hadd_ps(_mm512_castps512_ps256(ab), _mm512_extractf32x8_ps(ab, 1));
    const __m256 high = _mm256_hadd_ps(_mm512_castps512_ps256(cd), _mm512_extractf32x8_ps(cd, 1));
    const __m256 pairs = _mm256_hadd_ps(low, high);
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

static inline float vf_largest(vf x) {
    return _mm512_reduce_max_ps(x);
}

static inline uint32_t vf_greater(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

static inline uint32_t vf_is_nan(vf x) {
    return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
}

#endif
