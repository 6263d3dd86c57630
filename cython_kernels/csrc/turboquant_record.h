/* Single numbers of a packed block: where each lies, told plainly. */
#ifndef KANDIGA_TURBOQUANT_RECORD_H
#define KANDIGA_TURBOQUANT_RECORD_H

#include <string.h>
#include "float16.h"
#include "turboquant_ops.h"
#include "turboquant_tables.h"

/* Level of code j of a unit, between -127 and 127. */
static inline int level_at(const struct turboquant_code* code, const uint8_t* record, size_t unit,
                           size_t j) {
    const uint8_t* packed = record + code->codes + unit * code->code_bytes;
    const uint8_t* signs = record + code->signs + unit * code->sign_bytes;
    if (code->bits == 8) {
        return (int8_t)packed[j];
    }
    if (code->bits == 4) {
        return turboquant_levels[4][packed[j % 32] >> (j / 32 * 4) & 15];
    }
    const int sign = code->sign_bytes ? signs[j / 8] >> (j % 8) & 1 : 0;
    if (code->bits == 1) {
        return turboquant_levels[1][sign];
    }
    const int low = packed[j % 16] >> (j / 16 * 2) & 3;
    return turboquant_levels[code->bits][low | sign << 2];
}

/* Number `index` of the half-precision numbers that begin `halves` bytes into the record. */
static inline float half_at(const uint8_t* record, size_t halves, size_t index) {
    uint16_t half;
    memcpy(&half, record + halves + 2 * index, sizeof half);
    return half_to_float(half);
}

#endif
