/* Codes as bytes, 32 at a time, for the AVX2 files that include quant_int_body.inc. */
#ifndef KANDIGA_CODES_AVX2_H
#define KANDIGA_CODES_AVX2_H

#include "quant_ops.h"
#include "quant_windows.h"
#include "simd_avx2.h"

enum { CODE_BYTES = 32 };

typedef __m256i code_bytes; /* one code a byte */
typedef __m256i code_sums;  /* int32 */

static inline code_sums no_sums(void) {
    return _mm256_setzero_si256();
}

static inline code_sums times_256(code_sums sums) {
    return _mm256_slli_epi32(sums, 8);
}

static inline vf to_floats(code_sums sums) {
    return _mm256_cvtepi32_ps(sums);
}

static inline __m256i load_steps(const int8_t* steps) {
    return _mm256_loadu_si256((const __m256i*)steps);
}

/* scales[lane * num_groups / 8] in each lane, for 2 and 4 groups. */
static inline vf spread_scales(const float* scales, int num_groups) {
    if (num_groups == 2) {
        double pair;
        memcpy(&pair, scales, sizeof pair);
        return _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_set1_pd(pair)),
                                    _mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0));
    }
    return _mm256_permutevar_ps(_mm256_broadcast_ps((const __m128*)scales),
                                _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0));
}

static inline __m128i load_piece(int bits, const uint8_t* p, int piece) {
    return _mm_loadl_epi64((const __m128i*)(p + kandiga_piece_load(bits, piece, 8, 8)));
}

/* Eight codes of 3, 5 or 6 bits to the 16-bit lanes of each half: pieces `low` and `high`. */
static inline __m256i piece_codes(int bits, const uint8_t* p, int low, int high) {
    const __m256i bytes = _mm256_set_m128i(load_piece(bits, p, high), load_piece(bits, p, low));
    const __m256i delay =
        _mm256_set_m128i(_mm_set1_epi8((char)kandiga_piece_delay(bits, high, 8, 8)),
                         _mm_set1_epi8((char)kandiga_piece_delay(bits, low, 8, 8)));
    const __m256i windows =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kandiga_short_windows[bits]));
    const __m256i factors =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)kandiga_short_factors[bits]));
    const __m256i shorts = _mm256_shuffle_epi8(bytes, _mm256_add_epi8(windows, delay));
    return _mm256_srli_epi16(_mm256_mullo_epi16(shorts, factors), 16 - bits);
}

/* Code k of each byte of a chunk to codes[k]. */
static inline void take_codes(int bits, const uint8_t* p, code_bytes codes[4]) {
    if (bits == 2 || bits == 4 || bits == 8) {
        const __m256i packed = _mm256_loadu_si256((const __m256i*)p);
        const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1));
        for (int k = 0; k < 8 / bits; k++)
            codes[k] = _mm256_and_si256(_mm256_srli_epi16(packed, bits * k), mask);
    } else {
        codes[0] = _mm256_packus_epi16(piece_codes(bits, p, 0, 2), piece_codes(bits, p, 1, 3));
    }
}

/* The same for the last n bytes of a row; codes beyond are zero. */
static inline void take_codes_part(int bits, const uint8_t* p, size_t n, code_bytes codes[4]) {
    uint8_t bytes[CODE_BYTES] = {0};
    memcpy(bytes, p, n);
    take_codes(bits, bytes, codes);
}

#endif
