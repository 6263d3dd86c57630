#include "turboquant_avx512.inc"

enum { KEY_BIAS = 0 };

#define TURBOQUANT_TABLE kandiga_turboquant_amx
#define TURBOQUANT_PRODUCTS "turboquant_tiles.inc"
#include "turboquant_attend.inc"
