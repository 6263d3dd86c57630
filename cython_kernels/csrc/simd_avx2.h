/* What the *_body.inc files need of a vector, for AVX2 + FMA + F16C. The other simd_*.h define the
 * same names.
 *
 * vf is VF_LANES floats. *_part take the first n < VF_LANES elements only, touch no byte beyond
 * them and fill with zeros. Where an operand is NaN, vf_max(a, b) and vf_min(a, b) return b or NaN.
 */
#ifndef KANDIGA_SIMD_AVX2_H
#define KANDIGA_SIMD_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { VF_LANES = 8, VF_REGISTERS = 16 };
typedef __m256 vf;

/* Eight lanes of ones followed by eight of zeros: n before the middle lies the mask of the first n
 * lanes. */
static inline __m256i vf_mask(size_t n) {
    static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i*)(ones_then_zeros + 8 - n));
}

static inline vf vf_zero(void) {
    return _mm256_setzero_ps();
}

static inline vf vf_set(float x) {
    return _mm256_set1_ps(x);
}

static inline vf vf_load(const float* p) {
    return _mm256_loadu_ps(p);
}

static inline vf vf_load_part(const float* p, size_t n) {
    return _mm256_maskload_ps(p, vf_mask(n));
}

static inline void vf_store(float* p, vf x) {
    _mm256_storeu_ps(p, x);
}

static inline void vf_store_part(float* p, vf x, size_t n) {
    _mm256_maskstore_ps(p, vf_mask(n), x);
}

static inline vf vf_load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}

static inline vf vf_load_half_part(const uint16_t* p, size_t n) {
    uint16_t lanes[8] = {0};
    for (size_t i = 0; i < n; i++) {
        lanes[i] = p[i];
    }
    return vf_load_half(lanes);
}

static inline vf vf_load_bf16(const uint16_t* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline vf vf_load_bf16_part(const uint16_t* p, size_t n) {
    uint16_t lanes[8] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return vf_load_bf16(lanes);
}

static inline void vf_store_half(uint16_t* p, vf x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline vf vf_add(vf a, vf b) {
    return _mm256_add_ps(a, b);
}

static inline vf vf_sub(vf a, vf b) {
    return _mm256_sub_ps(a, b);
}

static inline vf vf_mul(vf a, vf b) {
    return _mm256_mul_ps(a, b);
}

static inline vf vf_div(vf a, vf b) {
    return _mm256_div_ps(a, b);
}

/* a * b + c, rounded once. */
static inline vf vf_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}

static inline vf vf_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}

static inline vf vf_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}

static inline vf vf_round(vf x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* 2^n for a whole n in [-126, 127]. */
static inline vf vf_power_of_two(vf n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

/* x * 2^n for a whole n in [-252, 254], in two steps so that subnormal and infinite results come
 * out right. */
static inline vf vf_scale(vf x, vf n) {
    const vf half = vf_round(vf_mul(n, vf_set(0.5f)));
    return vf_mul(vf_mul(x, vf_power_of_two(half)), vf_power_of_two(vf_sub(n, half)));
}

static inline float vf_sum(vf x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/* Sums of four vectors. */
static inline void vf_sum4(vf a, vf b, vf c, vf d, float sums[4]) {
    const vf pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

static inline float vf_largest(vf x) {
    __m128 max = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    max = _mm_max_ps(max, _mm_movehl_ps(max, max));
    return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

/* Bit i: a[i] > b[i]. False for NaN. */
static inline uint32_t vf_greater(vf a, vf b) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

/* Bit i: x[i] is NaN. */
static inline uint32_t vf_is_nan(vf x) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

#endif
