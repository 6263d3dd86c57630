#include "dispatch.h"
#include "cpu.h"
#include <string.h>

struct quant_ops kandiga_quant;
struct vector_ops kandiga_vector;
struct gemm_ops kandiga_gemm, kandiga_gemm_int;
struct turboquant_ops kandiga_turboquant;
int kandiga_rows_as_alone;
static int selected = KANDIGA_ISA_SCALAR;

typedef void (*any_function)(void);

/* Both tables hold function pointers and nothing else, so they are merged as arrays of them. */
static void put_over(void* table, const void* faster, size_t table_bytes) {
    for (size_t offset = 0; offset < table_bytes; offset += sizeof(any_function)) {
        any_function entry;
        memcpy(&entry, (const char*)faster + offset, sizeof entry);
        if (entry != NULL)
            memcpy((char*)table + offset, &entry, sizeof entry);
    }
}

static void use(const struct quant_ops* quant, const struct vector_ops* vector) {
    put_over(&kandiga_quant, quant, sizeof kandiga_quant);
    if (vector)
        put_over(&kandiga_vector, vector, sizeof kandiga_vector);
}

void kandiga_select_isa(int isa) {
    use(&kandiga_quant_scalar, &kandiga_vector_scalar);
    kandiga_gemm = kandiga_gemm_int = (struct gemm_ops){0};
    kandiga_turboquant = kandiga_turboquant_scalar;
#if defined(__x86_64__)
    if (isa >= KANDIGA_ISA_AVX2) {
        use(&kandiga_quant_avx2, &kandiga_vector_avx2);
        kandiga_turboquant = kandiga_turboquant_avx2;
    }
    if (isa == KANDIGA_ISA_AVX2VNNI)
        use(&kandiga_quant_avx2vnni, NULL);
    if (isa >= KANDIGA_ISA_AVX512)
        use(&kandiga_quant_avx512, &kandiga_vector_avx512);
    if (isa >= KANDIGA_ISA_AVX512VNNI) {
        use(&kandiga_quant_avx512vnni, NULL);
        kandiga_turboquant = kandiga_turboquant_avx512vnni;
    }
#elif defined(__aarch64__)
    if (isa >= KANDIGA_ISA_NEON) {
        use(&kandiga_quant_neon, &kandiga_vector_neon);
        kandiga_turboquant = kandiga_turboquant_neon;
    }
    if (isa >= KANDIGA_ISA_NEONDOT) {
        use(&kandiga_quant_neondot, NULL);
        kandiga_turboquant = kandiga_turboquant_neondot;
    }
#endif
#ifdef KANDIGA_HAVE_AMX
    if (isa == KANDIGA_ISA_AMX) {
        kandiga_gemm = kandiga_gemm_amx;
        kandiga_gemm_int = kandiga_gemm_int_amx;
        kandiga_turboquant = kandiga_turboquant_amx;
    }
#endif
    selected = isa;
}

int kandiga_selected_isa(void) {
    return selected;
}

int kandiga_best_isa(void) {
    int isa = KANDIGA_NUM_ISAS - 1;
    while (!kandiga_isa_available(isa))
        isa--;
    return isa;
}
