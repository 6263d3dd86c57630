/* The compressed KV cache: blocks of 128 tokens, coded coordinate by coordinate in a rotated basis.
 *
 * turboquant_ops.h       this file: where everything lies in a block, and the table of kernels
 * turboquant_scalar.c    attention in plain C: the reference the others are tested against
 * turboquant_encode.inc  rotation and coding, plain loops over 16 vectors at a time, compiled for
 *                        every instruction set
 * turboquant_shape.inc   codes of keys that take care of what queries look at
 * turboquant_attend.inc  attention on the codes, written once over what turboquant_<isa>.c defines
 * turboquant_rows.inc    its products, in vector registers
 * turboquant_tiles.inc   its products, in the tiles of AMX
 * turboquant.h, .c       the public calls: splitting over threads, merging
 * specs/turboquant.md    the arithmetic and its reasons
 *
 * A unit is 64 codes: 16 lanes of 4. Keys have a token in each lane and 4 neighbouring dims in it;
 * values a dim in each lane and 4 neighbouring tokens. So the products of 4 bytes that instruction
 * sets add up in a 32-bit lane are a part of a score, or of an output, and no sum ever crosses
 * lanes. Code j of a unit is lane j / 4, member j % 4. How a unit is stored:
 *
 *   2 bits  16 bytes; byte i holds codes i, i + 16, i + 32, i + 48 from its low bits up
 *   3 bits  the magnitude as 2 bits are; and 8 bytes with the sign of code j in bit j
 *   4 bits  32 bytes; byte i holds codes i and i + 32
 *   8 bits  64 bytes, the levels themselves
 *   1 bit   8 bytes of signs alone (the QJL residual)
 */
#ifndef KANDIGA_TURBOQUANT_OPS_H
#define KANDIGA_TURBOQUANT_OPS_H

#include <stddef.h>
#include <stdint.h>

enum {
    TQ_BLOCK_TOKENS = 128,
    TQ_LANES = 16,
    TQ_MEMBERS = 4,
    TQ_UNIT_CODES = TQ_LANES * TQ_MEMBERS,
    TQ_MAX_HEAD_DIM = 512, /* vectors being coded lie on the stack, 16 at a time */
    TQ_TILE_ROWS = 32,     /* query rows that share a walk over a block */
    TQ_MAX_STAGES = 3
};
/* What a level of 1 stands for: with it a scale is about the size of a coordinate, and far from the
 * subnormal halves. */
#define TQ_LEVEL_UNIT (1.0f / 128.0f)

/* One coded array of a record. */
struct turboquant_code {
    int bits;                      /* 0: not there */
    size_t scales, codes, signs;   /* offsets in the record: 128 halves, units, sign planes */
    size_t code_bytes, sign_bytes; /* of a unit */
};

/* A block holds one record for each KV head: the mean of its keys, keys, values. */
struct turboquant_layout {
    size_t num_kv_heads, head_dim;
    size_t padded_dim; /* the next multiple of 16: so many dims are coded */
    size_t mean;       /* offset in the record: padded_dim halves */
    struct turboquant_code keys, residual, values;
    size_t record_bytes, block_bytes;
    size_t stages; /* of the rotation: 1 for a power of two, else 3 */
    const float *key_signs, *value_signs, *residual_signs; /* (stages, head_dim), 1 or -1 */
};

/* Query rows, rotated and rounded: 4 signed bytes a word. */
struct turboquant_queries {
    int32_t *codes, *residual_codes;   /* (rows, padded_dim / 4) */
    float *scales, *residual_scales;   /* (rows) */
    int32_t *totals, *residual_totals; /* (rows): sums of the bytes */
};

/* Rows of one KV head over some blocks, all of which they see. */
struct turboquant_tile {
    const struct turboquant_layout* layout;
    const struct turboquant_queries* queries;
    size_t first_row, num_rows; /* of the queries; at most TQ_TILE_ROWS */
    const float* const* q;      /* (num_rows) rows as they came, for the product with the mean */
    float scale;                /* of the softmax */
    const uint8_t* const* blocks;
    const int32_t* counts; /* tokens of each block, 1 to 128 */
    size_t num_blocks;
    size_t record; /* offset of the KV head's record in a block */
    float* acc;    /* (num_rows, padded_dim): unnormalized sums, in the basis of the values */
    float *max, *sum;
};

struct turboquant_ops {
    /* Code the mean and 128 keys, or 128 values, given as halves, into a record. energies
     * (head_dim): what queries have in each channel, NULL or zeros when nothing is known. */
    void (*encode_keys)(const struct turboquant_layout* layout, const uint16_t* rows,
                        ptrdiff_t stride, const float* energies, uint8_t* record);
    void (*encode_values)(const struct turboquant_layout* layout, const uint16_t* rows,
                          ptrdiff_t stride, uint8_t* record);
    /* Rotate 16 vectors, or back: lanes (head_dim, 16). */
    void (*rotate)(const float* signs, size_t stages, size_t head_dim, int inverse, float* lanes);
    /* Rotate and round up to 16 rows into the queries from first_row on. */
    void (*prepare)(const struct turboquant_layout* layout, const float* const* rows,
                    size_t num_rows, const struct turboquant_queries* queries, size_t first_row);
    void (*attend)(const struct turboquant_tile* tile);
};

extern const struct turboquant_ops kandiga_turboquant_scalar;
extern const struct turboquant_ops kandiga_turboquant_avx2;
extern const struct turboquant_ops kandiga_turboquant_avx512vnni;
extern const struct turboquant_ops kandiga_turboquant_amx;
extern const struct turboquant_ops kandiga_turboquant_neon;
extern const struct turboquant_ops kandiga_turboquant_neondot;

#endif
