#include "vector_ops.h"

const struct vector_ops kandiga_vector_avx512 = {0};
