#ifndef KANDIGA_QUANT_WINDOWS_H
#define KANDIGA_QUANT_WINDOWS_H

#include <stdint.h>

/*
 * Taking codes of 3, 5 and 6 bits apart. Eight codes are `bits` whole bytes, so code i lies the
 * same way in every run of eight: within the two bytes from byte i * bits / 8 on, shifted up by i *
 * bits % 8. Shuffling those two bytes into lane i and masking leaves code * 2^shift; `prepare`
 * divides x by 2^shift, which is exact, and so no lane is ever shifted.
 */

/* Shuffle control of lane i: its two bytes, then two zeros (an index with the top bit set). */
#define KANDIGA_WINDOW(i, bits) (i) * (bits) / 8, (i) * (bits) / 8 + 1, 0x80, 0x80
#define KANDIGA_MASK(i, bits) ((1u << (bits)) - 1) << (i) * (bits) % 8
#define KANDIGA_LANES(of, bits)                                                                    \
    {of(0, bits),  of(1, bits),  of(2, bits),  of(3, bits), of(4, bits),  of(5, bits),             \
     of(6, bits),  of(7, bits),  of(8, bits),  of(9, bits), of(10, bits), of(11, bits),            \
     of(12, bits), of(13, bits), of(14, bits), of(15, bits)}

static const uint8_t kandiga_windows[7][64] = {
    [3] = KANDIGA_LANES(KANDIGA_WINDOW, 3),
    [5] = KANDIGA_LANES(KANDIGA_WINDOW, 5),
    [6] = KANDIGA_LANES(KANDIGA_WINDOW, 6),
};

static const uint32_t kandiga_masks[7][16] = {
    [3] = KANDIGA_LANES(KANDIGA_MASK, 3),
    [5] = KANDIGA_LANES(KANDIGA_MASK, 5),
    [6] = KANDIGA_LANES(KANDIGA_MASK, 6),
};

/*
 * The same for integer kernels, in lanes of 16 bits, whose codes must be shifted down: multiplying
 * by kandiga_short_factors brings the code's last bit to the lane's, and drops what lies above it.
 */
#define KANDIGA_SHORT_WINDOW(i, bits) (i) * (bits) / 8, (i) * (bits) / 8 + 1
#define KANDIGA_SHORT_FACTOR(i, bits) 1u << (16 - (bits) - (i) * (bits) % 8)
#define KANDIGA_EIGHT_LANES(of, bits)                                                              \
    {of(0, bits), of(1, bits), of(2, bits), of(3, bits),                                           \
     of(4, bits), of(5, bits), of(6, bits), of(7, bits)}

static const uint8_t kandiga_short_windows[7][16] = {
    [3] = KANDIGA_EIGHT_LANES(KANDIGA_SHORT_WINDOW, 3),
    [5] = KANDIGA_EIGHT_LANES(KANDIGA_SHORT_WINDOW, 5),
    [6] = KANDIGA_EIGHT_LANES(KANDIGA_SHORT_WINDOW, 6),
};

static const uint16_t kandiga_short_factors[7][8] = {
    [3] = KANDIGA_EIGHT_LANES(KANDIGA_SHORT_FACTOR, 3),
    [5] = KANDIGA_EIGHT_LANES(KANDIGA_SHORT_FACTOR, 5),
    [6] = KANDIGA_EIGHT_LANES(KANDIGA_SHORT_FACTOR, 6),
};

/*
 * A unit of 32 codes is 4 * bits bytes and is loaded in pieces of piece_codes codes, load_bytes
 * bytes a load. Where a piece begins so late that the load would pass the unit's end (and with the
 * last unit the buffer's), the load begins earlier; the window then lies `piece start - load start`
 * later.
 */
static inline int kandiga_piece_load(int bits, int piece, int piece_codes, int load_bytes) {
    int start = piece * piece_codes * bits / 8;
    int last = 4 * bits - load_bytes;
    return start < last ? start : last;
}

static inline int kandiga_piece_delay(int bits, int piece, int piece_codes, int load_bytes) {
    return piece * piece_codes * bits / 8 -
           kandiga_piece_load(bits, piece, piece_codes, load_bytes);
}

#endif
