#include "simd_neon.h"

#define VECTOR_TABLE kandiga_vector_neon
#include "vector_table.inc"
