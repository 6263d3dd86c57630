/* The matrix kernels for AVX-512 F, BW, VL, DQ. */
#include "quant_ops.h"
#include "quant_windows.h"
#include "simd_avx512.h"

/*
 * 4 rows x 6 tokens are 24 sums, which leaves 8 of 32 registers for weights and x. 8 rows x 3
 * tokens read x half as often and were a fifth slower.
 */
enum { TILE_ROWS = 4, TILE_TOKENS = 6 };

typedef __m512i words; /* VF_LANES 32-bit words */

static inline words load_words(const uint8_t* p) {
    return _mm512_loadu_si512(p);
}

static inline words load_words_part(const uint8_t* p, size_t n) {
    return _mm512_maskz_loadu_epi32(vf_mask(n), p);
}

/* Code k of each word, times 2^(bits * k); the last one unshifted, for it would be negative. */
static inline vf word_codes(words w, int bits, int k) {
    int shift = bits * k;
    if (shift == 32 - bits)
        return _mm512_cvtepi32_ps((__m512i)((__v16su)w >> shift));
    int mask = ((1 << bits) - 1) << shift;
    return _mm512_cvtepi32_ps(_mm512_and_si512(w, _mm512_set1_epi32(mask)));
}

/* values[lane / lanes_per_group] in each lane; `groups` is from lane_groups. */
static inline words lane_groups(int lanes_per_group) {
    int index[16];
    for (int lane = 0; lane < 16; lane++)
        index[lane] = lane / lanes_per_group;
    return _mm512_loadu_si512(index);
}

static inline vf spread(const float* values, words groups) {
    return _mm512_permutexvar_ps(groups, _mm512_loadu_ps(values));
}

static inline int64_t load_eight(const uint8_t* p) {
    int64_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    return bytes;
}

/* 32 codes of 3, 5 or 6 bits, each times 2^shift as quant_windows.h has it; or of 8 bits. */
static inline void unit_codes(int bits, const uint8_t* unit, vf codes[2]) {
    for (int piece = 0; piece < 2; piece++) {
        if (bits == 8) {
            __m128i bytes = _mm_loadu_si128((const __m128i*)(unit + 16 * piece));
            codes[piece] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
            continue;
        }
        /* 16 codes of 3 bits are 6 bytes, and the unit has only 12. */
        int load_bytes = bits == 3 ? 8 : 16;
        const uint8_t* at = unit + kandiga_piece_load(bits, piece, 16, load_bytes);
        __m512i bytes = bits == 3 ? _mm512_set1_epi64(load_eight(at))
                                  : _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)at));
        int delay = kandiga_piece_delay(bits, piece, 16, load_bytes);
        __m512i control = _mm512_add_epi8(_mm512_loadu_si512(kandiga_windows[bits]),
                                          _mm512_set1_epi8((char)delay));
        __m512i windows = _mm512_shuffle_epi8(bytes, control);
        __m512i masks = _mm512_loadu_si512(kandiga_masks[bits]);
        codes[piece] = _mm512_cvtepi32_ps(_mm512_and_si512(windows, masks));
    }
}

#include "quant_body.inc"

const struct quant_ops kandiga_quant_avx512 = {
    .prepare = prepare,
    .rows = rows,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
};
