#include "simd_avx2.h"

#define VECTOR_TABLE kandiga_vector_avx2
#include "vector_table.inc"
