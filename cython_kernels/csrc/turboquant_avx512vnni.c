#include "turboquant_avx512.inc"

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

#define TURBOQUANT_TABLE kandiga_turboquant_avx512vnni
#define TURBOQUANT_PRODUCTS "turboquant_rows.inc"
#include "turboquant_attend.inc"
