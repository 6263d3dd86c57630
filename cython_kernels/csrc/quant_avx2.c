/* The matrix kernels for AVX2, FMA, F16C. What the functions give is said in quant_avx512.c. */
#include "codes_avx2.h"

/* 4 rows x 3 tokens are 12 sums, which leaves 4 of 16 registers for weights and x. */
enum { TILE_ROWS = 4, TILE_TOKENS = 3 };

typedef __m256i words;

static inline words load_words(const uint8_t* p) {
    return _mm256_loadu_si256((const __m256i*)p);
}

static inline words load_words_part(const uint8_t* p, size_t n) {
    return _mm256_maskload_epi32((const int*)p, vf_mask(n));
}

static inline vf word_codes(words w, int bits, int k) {
    int shift = bits * k;
    if (shift == 32 - bits)
        return _mm256_cvtepi32_ps((__m256i)((__v8su)w >> shift));
    int mask = ((1 << bits) - 1) << shift;
    return _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(mask)));
}

static inline words lane_groups(int lanes_per_group) {
    int index[8];
    for (int lane = 0; lane < 8; lane++)
        index[lane] = lane / lanes_per_group;
    return _mm256_loadu_si256((const __m256i*)index);
}

static inline vf spread(const float* values, words groups) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), groups);
}

static inline int64_t load_eight(const uint8_t* p) {
    int64_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

static inline void unit_codes(int bits, const uint8_t* unit, vf codes[4]) {
    for (int piece = 0; piece < 4; piece++) {
        if (bits == 8) {
            __m128i bytes = _mm_loadl_epi64((const __m128i*)(unit + 8 * piece));
            codes[piece] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            continue;
        }
        const uint8_t* at = unit + kandiga_piece_load(bits, piece, 8, 8);
        int delay = kandiga_piece_delay(bits, piece, 8, 8);
        __m256i control = _mm256_add_epi8(_mm256_loadu_si256((const __m256i*)kandiga_windows[bits]),
                                          _mm256_set1_epi8((char)delay));
        __m256i bytes = _mm256_set1_epi64x(load_eight(at));
        __m256i windows = _mm256_shuffle_epi8(bytes, control);
        __m256i masks = _mm256_loadu_si256((const __m256i*)kandiga_masks[bits]);
        codes[piece] = _mm256_cvtepi32_ps(_mm256_and_si256(windows, masks));
    }
}

#include "quant_body.inc"

static inline code_sums add_products(int bits, code_sums sums, code_bytes codes,
                                     const int8_t* steps) {
    const __m256i x = load_steps(steps), ones = _mm256_set1_epi16(1);
    if (bits < 8) /* two products of 6 and 8 bits fit 16, of 8 and 8 do not */
        return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(codes, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), ones));
    const __m256i sixteens = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), ones);
    return _mm256_add_epi32(sums, _mm256_slli_epi32(sixteens, 4));
}

#include "quant_int_body.inc"

const struct quant_ops kandiga_quant_avx2 = {
    .prepare = prepare,
    .rows = rows,
    .prepare_int = prepare_int,
    .rows_int = rows_int,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
};
