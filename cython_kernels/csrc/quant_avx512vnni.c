/* Integer arithmetic for AVX-512 with VNNI and VBMI. */
#include "quant_ops.h"
#include "simd_avx512.h"

enum { CODE_BYTES = 64 };

typedef __m512i code_bytes; /* one code a byte */
typedef __m512i code_sums;

static inline code_sums no_sums(void) {
    return _mm512_setzero_si512();
}

static inline code_sums times_256(code_sums sums) {
    return _mm512_slli_epi32(sums, 8);
}

static inline vf to_floats(code_sums sums) {
    return _mm512_cvtepi32_ps(sums);
}

/* Lane i of sums += the products of bytes 4 i to 4 i + 3. */
static inline code_sums add_products(int bits, code_sums sums, code_bytes codes,
                                     const int8_t* steps) {
    (void)bits;
    return _mm512_dpbusd_epi32(sums, codes, _mm512_loadu_si512(steps));
}

/*
 * scales[lane * num_groups / 16] in each lane. The loads are no longer than what vf_store wrote,
 * and aligned to their size: the processor takes such a load's data from a store still under way.
 */
static inline vf spread_scales(const float* scales, int num_groups) {
    if (num_groups == 2) {
        double pair;
        memcpy(&pair, scales, sizeof pair);
        const __m512i lanes = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
        return _mm512_permutevar_ps(_mm512_castpd_ps(_mm512_set1_pd(pair)), lanes);
    }
    if (num_groups == 4) {
        const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(scales)), lanes);
    }
    const __m512i lanes = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_permutexvar_ps(lanes, _mm512_broadcast_f32x8(_mm256_loadu_ps(scales)));
}

/* The bytes of eight codes of `bits` bits to each eight bytes. */
static inline __m512i eights_control(int bits) {
    uint8_t index[64];
    for (int i = 0; i < 64; i++)
        index[i] = (uint8_t)(i / 8 * bits + (i % 8 < bits ? i % 8 : 0));
    return _mm512_loadu_si512(index);
}

/* The bit at which code i of eight begins. */
static inline __m512i shifts_control(int bits) {
    uint8_t shifts[64];
    for (int i = 0; i < 64; i++)
        shifts[i] = (uint8_t)(i % 8 * bits);
    return _mm512_loadu_si512(shifts);
}

static inline void split_codes(int bits, __m512i packed, code_bytes codes[4]) {
    const __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    if (bits == 8) {
        codes[0] = packed;
    } else if (bits == 4 || bits == 2) {
        for (int k = 0; k < 8 / bits; k++)
            codes[k] = _mm512_and_si512((__m512i)((__v32hu)packed >> (bits * k)), mask);
    } else {
        const __m512i eights = _mm512_permutexvar_epi8(eights_control(bits), packed);
        codes[0] =
            _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts_control(bits), eights), mask);
    }
}

/* Code k of each byte of a chunk to codes[k]. */
static inline void take_codes(int bits, const uint8_t* p, code_bytes codes[4]) {
    if (bits == 2 || bits == 4 || bits == 8)
        split_codes(bits, _mm512_loadu_si512(p), codes);
    else
        split_codes(bits, _mm512_maskz_loadu_epi32((__mmask16)((1u << (2 * bits)) - 1), p), codes);
}

/* The same for the last n bytes of a row, a multiple of four; codes beyond are zero. */
static inline void take_codes_part(int bits, const uint8_t* p, size_t n, code_bytes codes[4]) {
    split_codes(bits, _mm512_maskz_loadu_epi32(vf_mask(n / 4), p), codes);
}

#include "quant_int_body.inc"

const struct quant_ops kandiga_quant_avx512vnni = {
    .prepare_int = prepare_int,
    .rows_int = rows_int,
};
