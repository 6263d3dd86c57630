/* Integer arithmetic for AVX2 with AVX-VNNI: processors with neither AVX-512 nor its VNNI. */
#include "codes_avx2.h"

static inline code_sums add_products(int bits, code_sums sums, code_bytes codes,
                                     const int8_t* steps) {
    (void)bits;
    return _mm256_dpbusd_avx_epi32(sums, codes, load_steps(steps));
}

#include "quant_int_body.inc"

const struct quant_ops kandiga_quant_avx2vnni = {
    .prepare_int = prepare_int,
    .rows_int = rows_int,
};
