/* The matrix kernels for AVX2, FMA, F16C. What the functions give is said in quant_avx512.c. */
#include "quant_ops.h"
#include "quant_windows.h"
#include "simd_avx2.h"

/* 4 rows x 3 tokens are 12 sums, which leaves 4 of 16 registers for weights and x. */
enum { TILE_ROWS = 4, TILE_TOKENS = 3 };

typedef __m256i words;

static inline vf load_bf16(const uint16_t* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline vf load_bf16_part(const uint16_t* p, size_t n) {
    uint16_t lanes[8] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return load_bf16(lanes);
}

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

const struct quant_ops kandiga_quant_avx2 = {
    .prepare = prepare,
    .rows = rows,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
};
