#include "dispatch.h"
#include "cpu.h"
#include <string.h>

struct quant_ops kandiga_quant;
struct vector_ops kandiga_vector;
struct gemm_ops kandiga_gemm, kandiga_gemm_int;
struct turboquant_ops kandiga_turboquant;
static int selected = KANDIGA_ISA_SCALAR;

typedef void (*any_function)(void);

/* Both tables hold function pointers and nothing else, so they are merged as arrays of them. */
static void merge(void* table, const void* fast, const void* scalar, size_t table_bytes) {
    for (size_t offset = 0; offset < table_bytes; offset += sizeof(any_function)) {
        any_function entry;
        memcpy(&entry, (const char*)fast + offset, sizeof entry);
        if (entry == NULL)
            memcpy(&entry, (const char*)scalar + offset, sizeof entry);
        memcpy((char*)table + offset, &entry, sizeof entry);
    }
}

void kandiga_select_isa(int isa) {
    const struct quant_ops* quant = &kandiga_quant_scalar;
    const struct vector_ops* vector = &kandiga_vector_scalar;
    const struct turboquant_ops* turboquant = &kandiga_turboquant_scalar;
#if defined(__x86_64__)
    if (isa == KANDIGA_ISA_AVX2) {
        quant = &kandiga_quant_avx2;
        vector = &kandiga_vector_avx2;
        turboquant = &kandiga_turboquant_avx2;
    } else if (isa == KANDIGA_ISA_AVX512 || isa == KANDIGA_ISA_AMX) {
        quant = &kandiga_quant_avx512;
        vector = &kandiga_vector_avx512;
        turboquant = __builtin_cpu_supports("avx512vnni") ? &kandiga_turboquant_avx512vnni
                                                          : &kandiga_turboquant_avx2;
    }
#elif defined(__aarch64__)
    if (isa == KANDIGA_ISA_NEON) {
        quant = &kandiga_quant_neon;
        vector = &kandiga_vector_neon;
        turboquant = &kandiga_turboquant_neon;
    }
#endif
    merge(&kandiga_quant, quant, &kandiga_quant_scalar, sizeof kandiga_quant);
    merge(&kandiga_vector, vector, &kandiga_vector_scalar, sizeof kandiga_vector);
    kandiga_gemm = kandiga_gemm_int = (struct gemm_ops){0};
#ifdef KANDIGA_HAVE_AMX
    if (isa == KANDIGA_ISA_AMX) {
        kandiga_gemm = kandiga_gemm_amx;
        kandiga_gemm_int = kandiga_gemm_int_amx;
    }
#endif
    kandiga_turboquant = *turboquant;
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
