/* IEEE half precision in plain C. Vector code uses the conversions of its instruction set; these
 * are for what has none. */
#ifndef KANDIGA_FLOAT16_H
#define KANDIGA_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    uint32_t bits;
    float value;
    if (magnitude >= 0x7c00u) { /* infinity or NaN */
        bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
    } else if (magnitude >= 0x0400u) {
        bits = sign | ((magnitude << 13) + 0x38000000u);
    } else { /* zero or subnormal: magnitude * 2^-24 is exact in float */
        value = (float)magnitude * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Round to nearest even; what does not fit becomes infinity; NaN stays NaN. */
static inline uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
    }
    if (bits >= 0x477ff000u) { /* 65520 and up round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (bits < 0x38800000u) { /* below 2^-14: adding 0.5 leaves the rounded subnormal in the low
                                 bits of the sum */
        float shifted;
        memcpy(&shifted, &bits, sizeof shifted);
        shifted += 0.5f;
        memcpy(&bits, &shifted, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0x0fffu + ((bits >> 13) & 1u);
    return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}

#endif
