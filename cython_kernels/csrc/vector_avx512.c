#include "simd_avx512.h"

#define VECTOR_TABLE kandiga_vector_avx512
#include "vector_table.inc"
