/*
 * Matrix times many tokens in float32 arithmetic, on the tile unit of AMX-BF16.
 *
 * A code of up to 8 bits is exact in bfloat16, and so is a float32 activation as the sum of three
 * bfloat16 planes: high, middle and low 8 bits of its significand. A product of two bfloat16 is
 * exact in float32, in which the unit adds. So nothing is lost but in the additions.
 *
 * Weights are the rows of the tiles, in the order in which they lie in memory; tokens are the
 * columns. The tile of one group is stored, scaled in float32 and added to the sums, while the unit
 * works on the next group. A code passes through registers once for all panels of a call.
 */
#include "gemm_amx_common.inc"

enum {
    UNIT = 32, /* columns of a tile: 16 pairs of bfloat16 */
    SLAB_UNITS = SLAB / UNIT,
    PLANES = 3,
    UNIT_BYTES = PLANES * TILE_BYTES, /* of a panel */
};

typedef uint16_t weight_tiles[SLAB_UNITS][BLOCK][UNIT]; /* the columns of a slab as bfloat16 */
typedef float tile_sums[2][TILE][TILE];

/*
 * Order of columns in a unit: position 8 q + i of quantized weights is column 4 i + q, the order in
 * which 16-bit words of 4-bit codes come apart. Unquantized weights keep their order.
 */
INLINE int column_at(int quantized, int position) {
    return quantized ? 4 * (position % 8) + position / 8 : position;
}

/* Units of a panel, padded with zeros to whole slabs. */
static inline size_t num_units(const struct kandiga_matrix* w) {
    return kandiga_round_up(w->in_features, SLAB) / UNIT;
}

static inline size_t group_columns(const struct kandiga_matrix* w) {
    return w->bits ? (size_t)w->group_size : SLAB;
}

/* Where a panel holds its sums over groups of group_size columns: (groups, TILE) floats. */
static inline size_t sums_offset(const struct kandiga_matrix* w, size_t group_size) {
    size_t offset = num_units(w) * UNIT_BYTES;
    for (size_t size = UNIT; size < group_size; size *= 2)
        offset += num_units(w) * UNIT / size * TILE * sizeof(float);
    return offset;
}

static int serves(const struct kandiga_matrix* w) {
    return w->arithmetic == KANDIGA_EXACT && (w->bits > 0 || w->dtype == KANDIGA_BF16);
}

static size_t panel_bytes(const struct kandiga_matrix* w) {
    return sums_offset(w, 256);
}

/* Bringing x into panels. */

INLINE __m512i bits_of(vf x) {
    return _mm512_castps_si512(x);
}

/* The upper 16 bits, as a float: x cut off to bfloat16. */
INLINE vf upper(vf x) {
    return _mm512_castsi512_ps(_mm512_and_si512(bits_of(x), _mm512_set1_epi32((int)0xffff0000u)));
}

/* x as the sum of three bfloat16: cutting off leaves a rest with the sign of x and its lower bits.
 */
INLINE void split(vf x, vf plane[PLANES]) {
    plane[0] = upper(x);
    const vf rest = _mm512_sub_ps(x, plane[0]);
    plane[1] = upper(rest);
    plane[2] = _mm512_sub_ps(rest, plane[1]);
}

/* One unit of columns; returns each token's sum over it. */
INLINE vf prepare_unit(int quantized, const float* const* x, size_t num_tokens, size_t begin,
                       size_t columns, char* out) {
    _Alignas(64) float column[UNIT][TILE];
    for (size_t half = 0; half < 2; half++) {
        vf loaded[16];
        size_t left = columns > 16 * half ? columns - 16 * half : 0;
        load_columns(x, num_tokens, begin + 16 * half, left, loaded);
        for (int i = 0; i < 16; i++)
            _mm512_store_ps(column[16 * half + (size_t)i], loaded[i]);
    }
    vf sum = vf_zero();
    for (int pair = 0; pair < 16; pair++) {
        vf even[PLANES], odd[PLANES];
        const vf x_even = _mm512_load_ps(column[column_at(quantized, 2 * pair)]);
        const vf x_odd = _mm512_load_ps(column[column_at(quantized, 2 * pair + 1)]);
        split(x_even, even);
        split(x_odd, odd);
        sum = _mm512_add_ps(sum, _mm512_add_ps(x_even, x_odd));
#pragma GCC unroll 3
        for (int p = 0; p < PLANES; p++) {
            const __m512i low = _mm512_srli_epi32(bits_of(even[p]), 16);
            _mm512_store_si512(out + (p * TILE + pair) * 64,
                               _mm512_mask_blend_epi16(0xaaaaaaaa, low, bits_of(odd[p])));
        }
    }
    return sum;
}

INLINE void prepare_units(int quantized, const struct kandiga_matrix* w, const float* const* x,
                          size_t num_tokens, char* panel) {
    float* sums = (float*)(panel + sums_offset(w, UNIT));
    for (size_t unit = 0; unit < num_units(w); unit++) {
        size_t begin = min_size(unit * UNIT, w->in_features);
        vf sum = prepare_unit(quantized, x, num_tokens, begin, w->in_features - begin,
                              panel + unit * UNIT_BYTES);
        if (quantized)
            _mm512_store_ps(sums + unit * TILE, sum);
    }
}

static void prepare(const struct kandiga_matrix* w, const float* const* x, size_t num_tokens,
                    void* panel) {
    if (w->bits == 0) {
        prepare_units(0, w, x, num_tokens, panel);
        return;
    }
    prepare_units(1, w, x, num_tokens, panel);
    for (size_t size = 2 * UNIT; size <= 128; size *= 2) {
        const float* halves = (const float*)((char*)panel + sums_offset(w, size / 2));
        float* sums = (float*)((char*)panel + sums_offset(w, size));
        for (size_t g = 0; g < num_units(w) * UNIT / size; g++)
            _mm512_store_ps(sums + g * TILE,
                            _mm512_add_ps(_mm512_load_ps(halves + 2 * g * TILE),
                                          _mm512_load_ps(halves + (2 * g + 1) * TILE)));
    }
}

#include "gemm_amx_unpack.inc"

/*
 * One unit and plane: the products of the block's two halves with 16 tokens are added to tiles LOW
 * and HIGH.
 */
#define MULTIPLY_UNIT(LOW, HIGH)                                                                   \
    do {                                                                                           \
        if (first) {                                                                               \
            _tile_loadd(LOW, zero_tile, 64);                                                       \
            _tile_loadd(HIGH, zero_tile, 64);                                                      \
        }                                                                                          \
        if (plane == 0) {                                                                          \
            _tile_loadd(4, weights[0], 64);                                                        \
            _tile_loadd(5, weights[TILE], 64);                                                     \
        }                                                                                          \
        _tile_loadd(6, x, 64);                                                                     \
        _tile_dpbf16ps(LOW, 4, 6);                                                                 \
        _tile_dpbf16ps(HIGH, 5, 6);                                                                \
    } while (0)

/* Even and odd groups add up in different tiles, so that one is stored while the other is used. */
INLINE void multiply_unit(int odd, int first, int plane, uint16_t (*weights)[UNIT], const char* x) {
    if (odd)
        MULTIPLY_UNIT(2, 3);
    else
        MULTIPLY_UNIT(0, 1);
}

INLINE void store_products(int odd, tile_sums out) {
    if (odd) {
        _tile_stored(2, out[0], 64);
        _tile_stored(3, out[1], 64);
    } else {
        _tile_stored(0, out[0], 64);
        _tile_stored(1, out[1], 64);
    }
}

/* A group's products that are still in tiles or just stored, and where they belong. */
struct pending {
    const float* scales; /* of the block's first row */
    float (*sums)[TILE];
};

/* sums += scale * products for some rows. */
INLINE void add_scaled(const tile_sums products, const struct pending* to, int begin, int end) {
    /* Copies: a store of a vector may alias what `to` points to. */
    const float* scales = to->scales;
    float (*sums)[TILE] = to->sums;
#pragma GCC unroll 32
    for (int r = begin; r < end; r++) {
        const vf product = _mm512_load_ps(products[r / TILE][r % TILE]);
        const vf scale = _mm512_set1_ps(scales[r * CHUNK_GROUPS]);
        _mm512_store_ps(sums[r], _mm512_fmadd_ps(scale, product, _mm512_load_ps(sums[r])));
    }
}

/* What a block's products of one chunk of columns need. */
struct chunk {
    struct unpacking from; /* codes at the chunk's first column */
    size_t slab_code_bytes;
    size_t num_slabs;
    size_t last_columns; /* columns of the last slab */
    const char* x;       /* panel 0 at the chunk's first column */
    size_t panel_bytes;
    size_t num_panels;
    const float* scales; /* (BLOCK, CHUNK_GROUPS) */
    block_sums* sums;
};

/*
 * The order of instructions is what keeps the tile unit busy: a tile stored is read only a group
 * later, codes are unpacked a slab ahead, and both are spread between the products in small shares,
 * for the processor looks some 500 instructions ahead and no further.
 */
INLINE void multiply_chunk(int groups, const struct chunk* chunk) {
    enum { ROWS = BLOCK };
    _Alignas(64) weight_tiles weights[2];
    _Alignas(64) tile_sums products[2];
    struct pending pending[2];
    const int units = SLAB_UNITS / groups; /* of a group */
    const int slab_steps = SLAB_UNITS * PLANES, group_steps = units * PLANES;
    size_t done = 0; /* groups times panels */
    if (chunk->last_columns < SLAB)
        memset(weights, 0, sizeof weights);
    chunk->from.unpack(&chunk->from, 0, chunk->num_slabs == 1 ? chunk->last_columns : SLAB, 0, ROWS,
                       weights[0]);
    for (size_t slab = 0; slab < chunk->num_slabs; slab++) {
        const size_t ahead = slab + 1;
        const size_t ahead_columns = ahead + 1 < chunk->num_slabs ? SLAB : chunk->last_columns;
        for (size_t p = 0; p < chunk->num_panels; p++) {
            const char* x = chunk->x + p * chunk->panel_bytes + slab * SLAB_UNITS * UNIT_BYTES;
            const int unpacks = p == 0 && ahead < chunk->num_slabs;
#pragma GCC unroll 12
            for (int step = 0; step < slab_steps; step++) {
                const int in_group = step % group_steps;
                const int odd = groups == 1 ? (int)(done & 1) : step / group_steps % 2;
                multiply_unit(odd, in_group == 0, step % PLANES, weights[slab % 2][step / PLANES],
                              x + step * TILE_BYTES);
                if (unpacks)
                    chunk->from.unpack(&chunk->from, ahead * chunk->slab_code_bytes, ahead_columns,
                                       (size_t)(step * ROWS / slab_steps),
                                       (size_t)((step + 1) * ROWS / slab_steps),
                                       weights[ahead % 2]);
                if (done >= 2)
                    add_scaled(products[odd], &pending[odd], in_group * ROWS / group_steps,
                               (in_group + 1) * ROWS / group_steps);
                if (in_group == group_steps - 1) {
                    if (done >= 1)
                        store_products(!odd, products[!odd]);
                    pending[odd].scales =
                        chunk->scales + slab * (size_t)groups + (size_t)(step / group_steps);
                    pending[odd].sums = chunk->sums[p];
                    done++;
                }
            }
        }
    }
    const int last = (done - 1) & 1;
    if (done >= 2)
        add_scaled(products[!last], &pending[!last], 0, ROWS);
    store_products(last, products[last]);
    add_scaled(products[last], &pending[last], 0, ROWS);
}

#define MULTIPLY(groups)                                                                           \
    NOINLINE void multiply_##groups(const struct chunk* chunk) {                                   \
        multiply_chunk(groups, chunk);                                                             \
    }
MULTIPLY(1)
MULTIPLY(2)
MULTIPLY(4)

typedef void (*multiply_function)(const struct chunk*);

/* By groups in a slab. */
static multiply_function choose_multiply(const struct kandiga_matrix* w) {
    static const multiply_function functions[] = {
        [1] = multiply_1, [2] = multiply_2, [4] = multiply_4};
    return functions[SLAB / group_columns(w)];
}

/* Zeros times group sums, and the scales, of count groups from `group` on. */
static void start_chunk(const struct kandiga_matrix* w, const char* panels, size_t num_panels,
                        const size_t* rows, size_t group, size_t count, block_scales scales,
                        block_sums* sums) {
    _Alignas(64) block_scales zeros;
    if (w->bits == 0) {
        for (size_t r = 0; r < BLOCK; r++)
            for (size_t g = 0; g < count; g++)
                scales[r][g] = 1.0f;
        return;
    }
    load_scales(w, w->scales, rows, group, count, scales);
    load_scales(w, w->zeros, rows, group, count, zeros);
    const char* group_sums =
        panels + sums_offset(w, (size_t)w->group_size) + group * TILE * sizeof(float);
    for (size_t p = 0; p < num_panels; p++)
        add_zeros(zeros, (const float*)(group_sums + p * panel_bytes(w)), count, sums[p]);
}

/* A block's sums over all columns, for num_panels panels. */
static void multiply_block(const struct kandiga_matrix* w, const char* panels, size_t num_panels,
                           const size_t* rows, block_sums* sums) {
    _Alignas(64) block_scales scales;
    const multiply_function multiply = choose_multiply(w);
    const size_t column_bits = w->bits ? (size_t)w->bits : 16;
    const size_t row_bytes = w->in_features * column_bits / 8;
    struct chunk chunk = {
        .slab_code_bytes = SLAB * column_bits / 8,
        .from.next_block = BLOCK * row_bytes,
        .panel_bytes = panel_bytes(w),
        .num_panels = num_panels,
        .scales = scales[0],
        .sums = sums,
    };
    prepare_unpacking(w, &chunk.from);
    memset(sums, 0, num_panels * sizeof *sums);
    for (size_t begin = 0; begin < w->in_features; begin += CHUNK_COLUMNS) {
        size_t columns = min_size(w->in_features - begin, CHUNK_COLUMNS);
        chunk.num_slabs = (columns + SLAB - 1) / SLAB;
        chunk.last_columns = columns - (chunk.num_slabs - 1) * SLAB;
        chunk.x = panels + begin / UNIT * UNIT_BYTES;
        for (size_t r = 0; r < BLOCK; r++)
            chunk.from.codes[r] =
                (const uint8_t*)w->weight + rows[r] * row_bytes + begin * column_bits / 8;
        size_t group_size = group_columns(w);
        start_chunk(w, panels, num_panels, rows, begin / group_size,
                    (columns + group_size - 1) / group_size, scales, sums);
        multiply(&chunk);
    }
}

static void rows(const struct kandiga_matrix* w, const void* panels, size_t num_tokens,
                 size_t row_begin, size_t row_end, float* out, size_t out_stride) {
    multiply_rows(2 * UNIT, w, panels, num_tokens, row_begin, row_end, out, out_stride);
}

const struct gemm_ops kandiga_gemm_amx = {
    .serves = serves,
    .panel_bytes = panel_bytes,
    .prepare = prepare,
    .rows = rows,
};
