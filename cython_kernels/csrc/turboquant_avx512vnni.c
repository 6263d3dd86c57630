#include "simd_avx512.h"

#include "turboquant_halves.inc"

#include "turboquant_encode.inc"

typedef __m512i ti;
enum { KEY_BIAS = 128, REGISTER_ROWS = 8 };

static inline ti ti_set(int32_t x) {
    return _mm512_set1_epi32(x);
}

static inline ti ti_add_keys(ti sum, const uint8_t* levels, int32_t word) {
    return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(levels), _mm512_set1_epi32(word));
}

static inline ti ti_add_values(ti sum, const uint8_t* levels, int32_t word) {
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(word), _mm512_loadu_si512(levels));
}

static inline vf ti_to_float(ti x) {
    return _mm512_cvtepi32_ps(x);
}

static inline void store_weights(vf w, uint8_t* high, uint8_t* low) {
    const ti whole = _mm512_cvtps_epi32(w);
    _mm_storeu_si128((__m128i*)high, _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 7)));
    _mm_storeu_si128((__m128i*)low,
                     _mm512_cvtepi32_epi8(_mm512_and_si512(whole, _mm512_set1_epi32(127))));
}

/* bits is a constant at every call. */
static inline __attribute__((always_inline)) void unpack_unit(int bits, const uint8_t* packed,
                                                              const uint8_t* signs,
                                                              const int8_t* table, int bias,
                                                              uint8_t* levels) {
    const __m512i flip = _mm512_set1_epi8((char)bias);
    if (bits == 8) {
        _mm512_storeu_si512(levels, _mm512_xor_si512(_mm512_loadu_si512(packed), flip));
        return;
    }
    __m512i codes;
    if (bits == 4) {
        const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)packed));
        const __m512i shifts = _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0);
        codes = _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(15));
    } else if (bits >= 2) {
        const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)packed));
        const __m512i shifts = _mm512_set_epi64(6, 6, 4, 4, 2, 2, 0, 0);
        codes = _mm512_and_si512(_mm512_srlv_epi64(all, shifts), _mm512_set1_epi8(3));
    } else {
        codes = _mm512_setzero_si512();
    }
    if (bits == 3 || bits == 1) {
        uint64_t mask;
        memcpy(&mask, signs, sizeof mask);
        codes = _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(bits == 3 ? 4 : 1));
    }
    const __m512i known = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
    _mm512_storeu_si512(levels, _mm512_xor_si512(_mm512_shuffle_epi8(known, codes), flip));
}

#define TURBOQUANT_TABLE kandiga_turboquant_avx512vnni
#include "turboquant_attend.inc"
