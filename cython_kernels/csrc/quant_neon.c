#include "quant_ops.h"

const struct quant_ops kandiga_quant_neon = {0};
