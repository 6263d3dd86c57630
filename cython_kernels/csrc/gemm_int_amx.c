/*
 * Matrix times many tokens in integer arithmetic, on the tile unit of AMX-INT8.
 *
 * Codes are unsigned bytes; an activation is a whole number of steps (quant_ops.h), in one signed
 * byte or as 256 * high + low in two. The sums of both bytes are integers without error and meet in
 * one integer; the group's scale and step make it a float32. A tile takes 64 codes of a row where
 * one of bfloat16 takes 32, and two bytes of x where float32 takes three bfloat16: half the
 * unpacking and a third of the products of gemm_amx.c.
 */
#include "gemm_amx_common.inc"
#include "quant_steps.h"

enum {
    SLAB_BYTES = SLAB * TILE, /* of a panel, in each plane */
    ROW_CODES = 64,           /* codes in a row of a tile of weights */
};

typedef uint8_t weight_tiles[SLAB / ROW_CODES][BLOCK][ROW_CODES];
typedef int32_t tile_sums[2][2][TILE][TILE]; /* by plane, by half of the block */

static inline int num_planes(const struct kandiga_matrix* w) {
    return w->arithmetic == KANDIGA_INT8 ? 1 : 2;
}

static inline size_t padded_columns(const struct kandiga_matrix* w) {
    return kandiga_round_up(w->in_features, SLAB);
}

/* A panel is its planes, slab by slab, then (groups, TILE) floats: steps, and after them sums. */
static inline size_t steps_offset(const struct kandiga_matrix* w) {
    return padded_columns(w) * TILE * (size_t)num_planes(w);
}

static inline size_t sums_offset(const struct kandiga_matrix* w) {
    return steps_offset(w) + padded_columns(w) / (size_t)w->group_size * TILE * sizeof(float);
}

static int serves(const struct kandiga_matrix* w) {
    return w->bits > 0;
}

static size_t panel_bytes(const struct kandiga_matrix* w) {
    return 2 * sums_offset(w) - steps_offset(w);
}

/* Bringing x into panels. */

/* What kandiga_round_to_steps does, for 16 tokens at a time. */
struct rounding {
    vf per_x; /* x times this is in steps */
    vf step;
    __mmask16 taken; /* tokens whose group is not all zero */
};

INLINE struct rounding find_steps(float (*columns)[TILE], size_t num_columns, float most) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (size_t c = 0; c < num_columns; c++)
        largest =
            _mm512_max_epu32(largest, _mm512_and_si512(_mm512_load_si512(columns[c]), magnitude));
    const vf most_x = _mm512_castsi512_ps(largest);
    const __mmask16 finite = _mm512_cmplt_epu32_mask(largest, _mm512_set1_epi32(0x7f800000));
    const __mmask16 taken =
        _mm512_mask_cmp_ps_mask(finite, most_x, _mm512_set1_ps(KANDIGA_LEAST_X), _CMP_GE_OQ);
    struct rounding rounding = {.taken = taken};
    rounding.per_x = _mm512_maskz_div_ps(taken, _mm512_set1_ps(most), most_x);
    const vf step = _mm512_maskz_div_ps(taken, most_x, _mm512_set1_ps(most));
    const vf nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
    rounding.step = _mm512_mask_mov_ps(nan, finite, step);
    return rounding;
}

/* The lowest bytes of four columns, side by side in each token's word. */
INLINE __m512i join_bytes(const __m512i four[4]) {
    const __m512i byte = _mm512_set1_epi32(0xff);
    __m512i joined = _mm512_slli_epi32(four[3], 24);
    joined = _mm512_or_si512(joined, _mm512_slli_epi32(_mm512_and_si512(four[2], byte), 16));
    joined = _mm512_or_si512(joined, _mm512_slli_epi32(_mm512_and_si512(four[1], byte), 8));
    return _mm512_or_si512(joined, _mm512_and_si512(four[0], byte));
}

/* A group's columns to bytes at `out`, planes SLAB_BYTES apart; its steps and sums. */
INLINE void prepare_group(int planes, float (*columns)[TILE], size_t num_columns, char* out,
                          float* steps, float* sums) {
    const float most = planes == 1 ? KANDIGA_MAX_INT8 : KANDIGA_MAX_INT16;
    const struct rounding rounding = find_steps(columns, num_columns, most);
    __m512i sum = _mm512_setzero_si512();
    for (size_t c = 0; c < num_columns; c += 4) {
        __m512i low[4], high[4];
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            const vf scaled = _mm512_mul_ps(_mm512_load_ps(columns[c + i]), rounding.per_x);
            low[i] = _mm512_maskz_cvtps_epi32(rounding.taken, scaled);
            sum = _mm512_add_epi32(sum, low[i]);
            /* The byte above the lower one, which counts from -128 on. */
            high[i] = _mm512_srai_epi32(_mm512_add_epi32(low[i], _mm512_set1_epi32(128)), 8);
        }
        if (planes == 2) {
            _mm512_store_si512(out, join_bytes(high));
            _mm512_store_si512(out + SLAB_BYTES, join_bytes(low));
        } else {
            _mm512_store_si512(out, join_bytes(low));
        }
        out += 64;
    }
    _mm512_store_ps(steps, rounding.step);
    _mm512_store_ps(sums, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), rounding.step));
}

static void prepare(const struct kandiga_matrix* w, const float* const* x, size_t num_tokens,
                    void* panel) {
    _Alignas(64) float columns[SLAB][TILE];
    const size_t group_size = (size_t)w->group_size;
    const int planes = num_planes(w);
    float* steps = (float*)((char*)panel + steps_offset(w));
    float* sums = (float*)((char*)panel + sums_offset(w));
    for (size_t begin = 0; begin < padded_columns(w); begin += SLAB) {
        for (size_t c = 0; c < SLAB; c += 16) {
            const size_t first = min_size(begin + c, w->in_features);
            vf loaded[16];
            load_columns(x, num_tokens, first, w->in_features - first, loaded);
            for (size_t i = 0; i < 16; i++)
                _mm512_store_ps(columns[c + i], loaded[i]);
        }
        char* out = (char*)panel + begin * TILE * (size_t)planes;
        for (size_t c = 0; c < SLAB; c += group_size) {
            if (planes == 1)
                prepare_group(1, columns + c, group_size, out + c * TILE, steps, sums);
            else
                prepare_group(2, columns + c, group_size, out + c * TILE, steps, sums);
            steps += TILE;
            sums += TILE;
        }
    }
}

/* Codes of a block of rows to bytes. */

struct unpacking {
    __m512i control; /* the bytes of eight codes to the eight bytes they become */
    __m512i shifts;  /* in bits, of each of those codes */
    __m512i mask;
    __mmask64 readable; /* bytes of ROW_CODES codes */
    size_t row_code_bytes;
    const uint8_t* codes[BLOCK];
    size_t next_block; /* bytes from a row's codes to those of the row a block further down */
};

static void prepare_unpacking(int bits, struct unpacking* from) {
    uint8_t control[64], shift[64];
    for (int i = 0; i < 64; i++) {
        control[i] = (uint8_t)(i % 8 < bits ? i / 8 * bits + i % 8 : 0);
        shift[i] = (uint8_t)(i % 8 * bits);
    }
    from->control = _mm512_loadu_si512(control);
    from->shifts = _mm512_loadu_si512(shift);
    from->mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    from->readable = (__mmask64)-1 >> (64 - 8 * bits);
    from->row_code_bytes = 8 * (size_t)bits;
}

/*
 * Columns of a slab, `offset` bytes after each row's codes. Columns missing in the last slab meet
 * steps of zero, so what is in their place does not matter; but nothing is read past the row.
 */
INLINE void unpack_rows(const struct unpacking* from, size_t offset, size_t columns, int row_begin,
                        int row_end, weight_tiles out) {
    const __m512i control = from->control, shifts = from->shifts, mask = from->mask;
    const size_t second = from->row_code_bytes;
    __mmask64 readable[2] = {from->readable, from->readable};
    if (columns < SLAB) {
        const size_t bytes = columns * second / ROW_CODES;
        readable[0] = bytes < second ? ((__mmask64)1 << bytes) - 1 : from->readable;
        readable[1] = bytes > second ? ((__mmask64)1 << (bytes - second)) - 1 : 0;
    }
    for (int r = row_begin; r < row_end; r++) {
        const uint8_t* p = from->codes[r] + offset;
        /* The next block's codes: rows lie so far apart that the processor sees no stream. */
        __builtin_prefetch(p + from->next_block, 0, 2);
        if (second > 32)
            __builtin_prefetch(p + from->next_block + 64, 0, 2);
#pragma GCC unroll 2
        for (size_t i = 0; i < SLAB / ROW_CODES; i++) {
            const __m512i packed = _mm512_maskz_loadu_epi8(readable[i], p + i * second);
            const __m512i spread = _mm512_permutexvar_epi8(control, packed);
            const __m512i codes = _mm512_multishift_epi64_epi8(shifts, spread);
            _mm512_store_si512(out[i][r], _mm512_and_si512(codes, mask));
        }
    }
}

/* Multiplying. */

/* The products of one tile of columns, with one plane, are added to tiles LOW and HIGH. */
#define MULTIPLY_TILE(LOW, HIGH, X)                                                                \
    do {                                                                                           \
        if (first) {                                                                               \
            _tile_loadd(LOW, zero_tile, 64);                                                       \
            _tile_loadd(HIGH, zero_tile, 64);                                                      \
        }                                                                                          \
        _tile_loadd(X, x, 64);                                                                     \
        _tile_dpbusd(LOW, 4, X);                                                                   \
        _tile_dpbusd(HIGH, 5, X);                                                                  \
    } while (0)

/* A second plane's products have tiles 2 and 3. With one plane, odd groups have. */
INLINE void multiply_tile(int second_tiles, int first, const char* x) {
    if (second_tiles)
        MULTIPLY_TILE(2, 3, 7);
    else
        MULTIPLY_TILE(0, 1, 6);
}

INLINE void load_weights(uint8_t (*weights)[ROW_CODES]) {
    _tile_loadd(4, weights[0], ROW_CODES);
    _tile_loadd(5, weights[TILE], ROW_CODES);
}

INLINE void store_products(int second_tiles, int32_t (*out)[TILE][TILE]) {
    if (second_tiles) {
        _tile_stored(2, out[0], 64);
        _tile_stored(3, out[1], 64);
    } else {
        _tile_stored(0, out[0], 64);
        _tile_stored(1, out[1], 64);
    }
}

/* A group's products that were stored, and where they belong. */
struct pending {
    const float* scales; /* of the block's first row */
    const float* steps;  /* of the panel's tokens */
    float (*sums)[TILE];
};

/* sums += scale * step * products for some rows. */
INLINE void add_scaled(int planes, const tile_sums products, const struct pending* to, int begin,
                       int end) {
    /* Copies: a store of a vector may alias what `to` points to. */
    const float* scales = to->scales;
    float (*sums)[TILE] = to->sums;
    const vf step = _mm512_load_ps(to->steps);
#pragma GCC unroll 32
    for (int r = begin; r < end; r++) {
        __m512i product = _mm512_load_si512(products[0][r / TILE][r % TILE]);
        if (planes == 2)
            product = _mm512_add_epi32(_mm512_slli_epi32(product, 8),
                                       _mm512_load_si512(products[1][r / TILE][r % TILE]));
        const vf scale = _mm512_set1_ps(scales[r * CHUNK_GROUPS]);
        const vf in_steps = _mm512_mul_ps(_mm512_cvtepi32_ps(product), step);
        _mm512_store_ps(sums[r], _mm512_fmadd_ps(scale, in_steps, _mm512_load_ps(sums[r])));
    }
}

/* What a block's products of one chunk of columns need. */
struct chunk {
    struct unpacking from; /* codes at the chunk's first column */
    size_t num_slabs;
    size_t last_columns; /* columns of the last slab */
    const char* x;       /* panel 0 at the chunk's first column */
    const float* steps;  /* panel 0's for the chunk's first group */
    size_t panel_bytes;
    size_t num_panels;
    const float* scales; /* (BLOCK, CHUNK_GROUPS) */
    block_sums* sums;
};

/*
 * As in gemm_amx.c, products are scaled while the next group is multiplied, and codes are unpacked
 * a slab ahead, both in small shares.
 */
INLINE void multiply_chunk(int groups, int planes, const struct chunk* chunk) {
    enum { ROWS = BLOCK };
    _Alignas(64) weight_tiles weights[2];
    _Alignas(64) tile_sums products[2];
    struct pending pending[2];
    const int tiles = groups == 4 ? 4 : 2; /* of columns, in a slab */
    const int tile_columns = SLAB / tiles, group_tiles = tiles / groups;
    const size_t slab_code_bytes = 2 * chunk->from.row_code_bytes;
    size_t done = 0; /* groups times panels */
    unpack_rows(&chunk->from, 0, chunk->num_slabs == 1 ? chunk->last_columns : SLAB, 0, ROWS,
                weights[0]);
    for (size_t slab = 0; slab < chunk->num_slabs; slab++) {
        const size_t ahead = slab + 1;
        const size_t ahead_columns = ahead + 1 < chunk->num_slabs ? SLAB : chunk->last_columns;
        for (size_t p = 0; p < chunk->num_panels; p++) {
            const char* x = chunk->x + p * chunk->panel_bytes + slab * (size_t)planes * SLAB_BYTES;
            const float* steps = (const float*)((const char*)chunk->steps + p * chunk->panel_bytes);
            const int unpacks = p == 0 && ahead < chunk->num_slabs;
#pragma GCC unroll 4
            for (int tile = 0; tile < tiles; tile++) {
                const int column = tile * tile_columns, in_group = tile % group_tiles;
                const int odd = groups == 1 ? (int)(done & 1) : tile / group_tiles % 2;
                load_weights((uint8_t (*)[ROW_CODES])(weights[slab % 2][column / ROW_CODES][0] +
                                                      column % ROW_CODES));
                multiply_tile(planes == 1 && odd, in_group == 0, x + column * TILE);
                if (unpacks)
                    unpack_rows(&chunk->from, ahead * slab_code_bytes, ahead_columns,
                                tile * ROWS / tiles, (2 * tile + 1) * ROWS / tiles / 2,
                                weights[ahead % 2]);
                if (planes == 2)
                    multiply_tile(1, in_group == 0, x + column * TILE + SLAB_BYTES);
                if (unpacks)
                    unpack_rows(&chunk->from, ahead * slab_code_bytes, ahead_columns,
                                (2 * tile + 1) * ROWS / tiles / 2, (tile + 1) * ROWS / tiles,
                                weights[ahead % 2]);
                /* Two planes fill the tiles of sums, which are stored at once then; one plane's are
                 * stored a group later. */
                const int scaled = planes == 2 ? !odd : odd;
                if (done >= (planes == 2 ? 1 : 2))
                    add_scaled(planes, products[scaled], &pending[scaled],
                               in_group * ROWS / group_tiles, (in_group + 1) * ROWS / group_tiles);
                if (in_group < group_tiles - 1)
                    continue;
                if (planes == 2) {
                    store_products(0, products[odd][0]);
                    store_products(1, products[odd][1]);
                } else if (done >= 1) {
                    store_products(!odd, products[!odd][0]);
                }
                const size_t group = slab * (size_t)groups + (size_t)(tile / group_tiles);
                pending[odd].scales = chunk->scales + group;
                pending[odd].steps = steps + group * TILE;
                pending[odd].sums = chunk->sums[p];
                done++;
            }
        }
    }
    const int last = (done - 1) & 1;
    if (planes == 1) {
        if (done >= 2)
            add_scaled(planes, products[!last], &pending[!last], 0, ROWS);
        store_products(last, products[last][0]);
    }
    add_scaled(planes, products[last], &pending[last], 0, ROWS);
}

#define MULTIPLY(groups, planes)                                                                   \
    NOINLINE void multiply_##groups##_##planes(const struct chunk* chunk) {                        \
        multiply_chunk(groups, planes, chunk);                                                     \
    }
MULTIPLY(1, 1)
MULTIPLY(1, 2)
MULTIPLY(2, 1)
MULTIPLY(2, 2)
MULTIPLY(4, 1)
MULTIPLY(4, 2)

typedef void (*multiply_function)(const struct chunk*);

/* By groups in a slab and planes. */
static multiply_function choose_multiply(const struct kandiga_matrix* w) {
    static const multiply_function functions[][3] = {[1] = {NULL, multiply_1_1, multiply_1_2},
                                                     [2] = {NULL, multiply_2_1, multiply_2_2},
                                                     [4] = {NULL, multiply_4_1, multiply_4_2}};
    return functions[SLAB / w->group_size][num_planes(w)];
}

static void multiply_block(const struct kandiga_matrix* w, const char* panels, size_t num_panels,
                           const size_t* rows, block_sums* sums) {
    _Alignas(64) block_scales scales, zeros;
    const multiply_function multiply = choose_multiply(w);
    const size_t group_size = (size_t)w->group_size;
    const size_t row_bytes = w->in_features * (size_t)w->bits / 8;
    struct chunk chunk = {
        .from.next_block = BLOCK * row_bytes,
        .panel_bytes = panel_bytes(w),
        .num_panels = num_panels,
        .scales = scales[0],
        .sums = sums,
    };
    prepare_unpacking(w->bits, &chunk.from);
    memset(sums, 0, num_panels * sizeof *sums);
    for (size_t begin = 0; begin < w->in_features; begin += CHUNK_COLUMNS) {
        const size_t columns = min_size(w->in_features - begin, CHUNK_COLUMNS);
        const size_t group = begin / group_size, count = columns / group_size;
        chunk.num_slabs = (columns + SLAB - 1) / SLAB;
        chunk.last_columns = columns - (chunk.num_slabs - 1) * SLAB;
        chunk.x = panels + begin * TILE * (size_t)num_planes(w);
        chunk.steps = (const float*)(panels + steps_offset(w)) + group * TILE;
        for (size_t r = 0; r < BLOCK; r++)
            chunk.from.codes[r] =
                (const uint8_t*)w->weight + rows[r] * row_bytes + begin * (size_t)w->bits / 8;
        load_scales(w, w->scales, rows, group, count, scales);
        load_scales(w, w->zeros, rows, group, count, zeros);
        const char* group_sums = panels + sums_offset(w) + group * TILE * sizeof(float);
        for (size_t p = 0; p < num_panels; p++)
            add_zeros(zeros, (const float*)(group_sums + p * chunk.panel_bytes), count, sums[p]);
        multiply(&chunk);
    }
}

static void rows(const struct kandiga_matrix* w, const void* panels, size_t num_tokens,
                 size_t row_begin, size_t row_end, float* out, size_t out_stride) {
    multiply_rows(w->group_size == 32 ? 32 : ROW_CODES, w, panels, num_tokens, row_begin, row_end,
                  out, out_stride);
}

const struct gemm_ops kandiga_gemm_int_amx = {
    .serves = serves,
    .panel_bytes = panel_bytes,
    .prepare = prepare,
    .rows = rows,
};
