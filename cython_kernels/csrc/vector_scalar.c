#include "vector_ops.h"

const struct vector_ops kandiga_vector_scalar = {0};
