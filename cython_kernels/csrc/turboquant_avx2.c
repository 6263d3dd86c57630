#include "simd_avx2.h"

#include "turboquant_halves.inc"

#include "turboquant_encode.inc"

typedef __m256i ti;
enum { KEY_BIAS = 0, REGISTER_ROWS = 4 };

static inline ti ti_set(int32_t x) {
    return _mm256_set1_epi32(x);
}

/* Sums of 4 products; those of two never leave 16 bits, since no factor is beyond 127. */
static inline ti add_products(ti sum, ti positive, ti other) {
    const ti pairs = _mm256_maddubs_epi16(positive, other);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline ti ti_add_keys(ti sum, const uint8_t* levels, int32_t word) {
    const ti query = _mm256_set1_epi32(word);
    const ti keys = _mm256_loadu_si256((const __m256i*)levels);
    return add_products(sum, _mm256_abs_epi8(query), _mm256_sign_epi8(keys, query));
}

static inline ti ti_add_values(ti sum, const uint8_t* levels, int32_t word) {
    return add_products(sum, _mm256_set1_epi32(word), _mm256_loadu_si256((const __m256i*)levels));
}

static inline vf ti_to_float(ti x) {
    return _mm256_cvtepi32_ps(x);
}

/* The low bytes of 8 whole numbers below 128. */
static inline void store_bytes(ti x, uint8_t* out) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i*)out, _mm_packus_epi16(words, words));
}

static inline void store_weights(vf w, uint8_t* high, uint8_t* low) {
    const ti whole = _mm256_cvtps_epi32(w);
    store_bytes(_mm256_srli_epi32(whole, 7), high);
    store_bytes(_mm256_and_si256(whole, _mm256_set1_epi32(127)), low);
}

/* Bytes of ones where the sign bits of 32 codes are set. */
static inline ti sign_bytes(const uint8_t* signs) {
    int32_t word;
    memcpy(&word, signs, sizeof word);
    const ti byte_of_code = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2,
                                             2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const ti bit_of_code = _mm256_set1_epi64x((int64_t)0x8040201008040201ull);
    const ti spread = _mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of_code);
    return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of_code), bit_of_code);
}

/* bits is a constant at every call. */
static inline __attribute__((always_inline)) void unpack_unit(int bits, const uint8_t* packed,
                                                              const uint8_t* signs,
                                                              const int8_t* table, int bias,
                                                              uint8_t* levels) {
    const ti known = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    (void)bias;
    for (int part = 0; part < 2; part++) {
        ti codes = _mm256_setzero_si256();
        if (bits == 8) {
            codes = _mm256_loadu_si256((const __m256i*)(packed + 32 * part));
            _mm256_storeu_si256((__m256i*)(levels + 32 * part), codes);
            continue;
        }
        if (bits == 4) {
            const ti both = _mm256_loadu_si256((const __m256i*)packed);
            codes = _mm256_and_si256(_mm256_srli_epi16(both, part * 4), _mm256_set1_epi8(15));
        } else if (bits >= 2) {
            const ti all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)packed));
            const ti shifts = _mm256_set_epi64x(4 * part + 2, 4 * part + 2, 4 * part, 4 * part);
            codes = _mm256_and_si256(_mm256_srlv_epi64(all, shifts), _mm256_set1_epi8(3));
        }
        if (bits == 3 || bits == 1) {
            const ti sign = _mm256_set1_epi8(bits == 3 ? 4 : 1);
            codes = _mm256_or_si256(codes, _mm256_and_si256(sign_bytes(signs + 4 * part), sign));
        }
        _mm256_storeu_si256((__m256i*)(levels + 32 * part), _mm256_shuffle_epi8(known, codes));
    }
}

#define TURBOQUANT_TABLE kandiga_turboquant_avx2
#define TURBOQUANT_PRODUCTS "turboquant_rows.inc"
#include "turboquant_attend.inc"
