/*
 * Matrix times many tokens on the tile unit of AMX-BF16, with AVX-512 for what is not a product.
 *
 * A code of up to 8 bits is exact in bfloat16, and so is a float32 activation as the sum of three
 * bfloat16 planes: high, middle and low 8 bits of its significand. A product of two bfloat16 is
 * exact in float32, in which the unit adds. So three planes are float32 arithmetic on codes, two
 * planes keep 16 bits of the activation, one plane 8. No integer is converted and no activation
 * scaled, which is what integer tiles would need after every group.
 *
 * Weights are the rows of the tiles, in the order in which they lie in memory; tokens are the
 * columns. The tile of one group is stored, scaled in float32 and added to the sums, while the unit
 * works on the next group. A code passes through registers once for all panels of a call.
 */
#include "gemm_ops.h"
#include "quant_windows.h"
#include "simd_avx512.h"
#include "vector_math.inc"

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

enum {
    UNIT = 32,  /* columns of a tile: 16 pairs of bfloat16 */
    TILE = 16,  /* rows of a tile, and its 32-bit columns: tokens */
    BLOCK = 32, /* rows of W computed together: two tiles share each tile of x */
    MAX_UNITS = 4,
    PLAIN_GROUP = 128,    /* columns summed in a tile where there are no scales */
    CHUNK_COLUMNS = 4096, /* columns whose scales are at hand as float32 */
    CHUNK_GROUPS = CHUNK_COLUMNS / UNIT,
};

typedef uint16_t weight_tiles[MAX_UNITS][BLOCK][UNIT]; /* the columns of a group as bfloat16 */
typedef float block_sums[BLOCK][TILE];                 /* one panel's */
typedef float tile_sums[2][TILE][TILE];
typedef const uint8_t* block_codes[BLOCK];

/*
 * Order of columns in a unit: position 8 q + i of quantized weights is column 4 i + q, the order in
 * which 16-bit words of 4-bit codes come apart. Unquantized weights keep their order.
 */
INLINE int column_at(int quantized, int position) {
    return quantized ? 4 * (position % 8) + position / 8 : position;
}

static inline size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static inline int num_planes(const struct kandiga_matrix* w) {
    return w->arithmetic == KANDIGA_INT8 ? 1 : w->arithmetic == KANDIGA_INT16 ? 2 : 3;
}

static inline size_t num_units(const struct kandiga_matrix* w) {
    return (w->in_features + UNIT - 1) / UNIT;
}

/* Bytes of one unit of a panel: its planes, each a tile. */
static inline size_t unit_bytes(const struct kandiga_matrix* w) {
    return (size_t)num_planes(w) * TILE * TILE * 4;
}

static inline size_t group_columns(const struct kandiga_matrix* w) {
    return w->bits ? (size_t)w->group_size : PLAIN_GROUP;
}

/* Where a panel holds its sums over groups of group_size columns: (groups, TILE) floats. */
static inline size_t sums_offset(const struct kandiga_matrix* w, size_t group_size) {
    size_t offset = num_units(w) * unit_bytes(w);
    for (size_t size = UNIT; size < group_size; size *= 2)
        offset += w->in_features / size * TILE * sizeof(float);
    return offset;
}

static int serves(const struct kandiga_matrix* w) {
    return w->bits > 0 || w->dtype == KANDIGA_BF16;
}

static size_t panel_bytes(const struct kandiga_matrix* w) {
    return sums_offset(w, 256);
}

/* rows[i][j] becomes rows[j][i]. */
INLINE void transpose(vf rows[16]) {
    vf t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        for (int j = 0; j < 2; j++) {
            const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
            rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    /* Now rows[4 b + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 b to 4 b + 3. */
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const vf ab_low = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0x88);
        const vf ab_high = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0xdd);
        const vf cd_low = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0x88);
        const vf cd_high = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0xdd);
        t[c] = _mm512_shuffle_f32x4(ab_low, cd_low, 0x88);
        t[8 + c] = _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd);
        t[4 + c] = _mm512_shuffle_f32x4(ab_high, cd_high, 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        rows[i] = t[i];
}

/* Bringing x into panels. */

INLINE __m512i bits_of(vf x) {
    return _mm512_castps_si512(x);
}

/* The upper 16 bits, as a float: x cut off to bfloat16. */
INLINE vf upper(vf x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(bits_of(x), _mm512_set1_epi32((int)0xffff0000u)));
}

/* x rounded to bfloat16, halves away from zero; NaN stays NaN. */
INLINE vf rounded(vf x) {
    const __m512i sum = _mm512_add_epi32(bits_of(x), _mm512_set1_epi32(0x8000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return upper(_mm512_mask_mov_ps(_mm512_castsi512_ps(sum), nan, x));
}

/*
 * The planes of x, high plane first; returns their sum. Three planes are x itself: cutting off
 * leaves a rest with the sign of x and its lower bits.
 */
INLINE vf split(int planes, vf x, vf plane[3]) {
    if (planes == 1)
        return plane[0] = rounded(x);
    if (planes == 2) {
        plane[0] = rounded(x);
        plane[1] = rounded(_mm512_sub_ps(x, plane[0]));
        return _mm512_add_ps(plane[0], plane[1]);
    }
    plane[0] = upper(x);
    const vf rest = _mm512_sub_ps(x, plane[0]);
    plane[1] = upper(rest);
    plane[2] = _mm512_sub_ps(rest, plane[1]);
    return x;
}

/* Columns `begin` on of every token of the panel, transposed: out[i] is column i. */
INLINE void load_columns(const float* const* x, size_t num_tokens, size_t begin, size_t columns,
                         vf out[16]) {
    const __mmask16 mask = vf_mask(min_size(columns, 16));
    for (size_t t = 0; t < 16; t++)
        out[t] = t < num_tokens ? _mm512_maskz_loadu_ps(mask, x[t] + begin) : vf_zero();
    transpose(out);
}

/* One unit of columns; returns each token's sum over it. */
INLINE vf prepare_unit(int quantized, int planes, const float* const* x, size_t num_tokens,
                       size_t begin, size_t columns, char* out) {
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
        vf even[3], odd[3];
        const vf x_even = _mm512_load_ps(column[column_at(quantized, 2 * pair)]);
        const vf x_odd = _mm512_load_ps(column[column_at(quantized, 2 * pair + 1)]);
        const vf sum_even = split(planes, x_even, even), sum_odd = split(planes, x_odd, odd);
        sum = _mm512_add_ps(sum, _mm512_add_ps(sum_even, sum_odd));
#pragma GCC unroll 3
        for (int p = 0; p < planes; p++) {
            const __m512i low = _mm512_srli_epi32(bits_of(even[p]), 16);
            _mm512_store_si512(out + (p * TILE + pair) * 64,
                               _mm512_mask_blend_epi16(0xaaaaaaaa, low, bits_of(odd[p])));
        }
    }
    return sum;
}

INLINE void prepare_units(int quantized, int planes, const struct kandiga_matrix* w,
                          const float* const* x, size_t num_tokens, char* panel) {
    float* sums = (float*)(panel + sums_offset(w, UNIT));
    for (size_t unit = 0; unit < num_units(w); unit++) {
        size_t begin = unit * UNIT;
        vf sum = prepare_unit(quantized, planes, x, num_tokens, begin,
                              min_size(w->in_features - begin, UNIT),
                              panel + unit * unit_bytes(w));
        if (quantized)
            _mm512_store_ps(sums + unit * TILE, sum);
    }
}

static void prepare(const struct kandiga_matrix* w, const float* const* x, size_t num_tokens,
                    void* panel) {
    if (w->bits == 0) {
        prepare_units(0, 3, w, x, num_tokens, panel);
        return;
    }
    switch (num_planes(w)) {
    case 1:
        prepare_units(1, 1, w, x, num_tokens, panel);
        break;
    case 2:
        prepare_units(1, 2, w, x, num_tokens, panel);
        break;
    default:
        prepare_units(1, 3, w, x, num_tokens, panel);
    }
    for (size_t size = 2 * UNIT; size <= 128; size *= 2) {
        const float* halves = (const float*)((char*)panel + sums_offset(w, size / 2));
        float* sums = (float*)((char*)panel + sums_offset(w, size));
        for (size_t g = 0; g < w->in_features / size; g++)
            _mm512_store_ps(sums + g * TILE,
                            _mm512_add_ps(_mm512_load_ps(halves + 2 * g * TILE),
                                          _mm512_load_ps(halves + (2 * g + 1) * TILE)));
    }
}

#include "gemm_amx_unpack.inc"

/* Scales or zeros of the block's rows, groups group to group + count, as float32. */
typedef float block_scales[BLOCK][CHUNK_GROUPS];

static void load_scales(const struct kandiga_matrix* w, const void* numbers, const size_t* rows,
                        size_t group, size_t count, block_scales out) {
    size_t num_groups = w->in_features / (size_t)w->group_size;
    for (size_t r = 0; r < BLOCK; r++) {
        size_t index = rows[r] * num_groups + group;
        for (size_t g = 0; g < count; g += 16) {
            size_t n = min_size(count - g, 16);
            vf values;
            if (w->dtype == KANDIGA_F32)
                values = vf_load_part((const float*)numbers + index + g, n);
            else if (w->dtype == KANDIGA_F16)
                values = vf_load_half_part((const uint16_t*)numbers + index + g, n);
            else
                values = _mm512_castsi512_ps(_mm512_slli_epi32(
                    _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(
                        vf_mask(n), (const uint16_t*)numbers + index + g)),
                    16));
            vf_store_part(out[r] + g, values, n);
        }
    }
}

/* sums += zeros times the panel's group sums. */
static void add_zeros(const block_scales zeros, const float* group_sums, size_t count,
                      block_sums sums) {
    for (int r = 0; r < BLOCK; r += 8) {
        vf s[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            s[i] = _mm512_load_ps(sums[r + i]);
        for (size_t g = 0; g < count; g++) {
            const vf x = _mm512_load_ps(group_sums + g * TILE);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                s[i] = _mm512_fmadd_ps(_mm512_set1_ps(zeros[r + i][g]), x, s[i]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            _mm512_store_ps(sums[r + i], s[i]);
    }
}

/* Tile registers: 0 to 3 sums, 4 and 5 weights, 6 and 7 x. All are 16 rows of 64 bytes. */
static void configure_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = TILE;
    }
    /* Not the intrinsic: GCC's says it reads 8 bytes, and the rest may never be written. */
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

static const float zero_row[TILE];

/*
 * The products of one group, into tiles LOW and HIGH for the block's two halves. They start from a
 * load of zeros: after TILEZERO each product took twice as long (79 cycles for what takes 35).
 */
#define MULTIPLY_GROUP(LOW, HIGH)                                                                  \
    do {                                                                                           \
        _tile_loadd(LOW, zero_row, 0);                                                             \
        _tile_loadd(HIGH, zero_row, 0);                                                            \
        for (int u = 0; u < units; u++) {                                                          \
            _tile_loadd(4, weights[u][0], 64);                                                     \
            _tile_loadd(5, weights[u][TILE], 64);                                                  \
            const char* x_u = x + u * planes * 1024;                                               \
            for (int p = 0; p < planes; p++) {                                                     \
                _tile_loadd(6, x_u + p * 1024, 64);                                                \
                _tile_dpbf16ps(LOW, 4, 6);                                                         \
                _tile_dpbf16ps(HIGH, 5, 6);                                                        \
            }                                                                                      \
        }                                                                                          \
    } while (0)

/* Products of an even and of an odd group use different tiles, so that one can be stored while the
 * other is worked on. */
INLINE void multiply_group(int odd, int units, int planes, weight_tiles weights, const char* x) {
    if (odd)
        MULTIPLY_GROUP(2, 3);
    else
        MULTIPLY_GROUP(0, 1);
}

INLINE void store_group(int odd, tile_sums out) {
    if (odd) {
        _tile_stored(2, out[0], 64);
        _tile_stored(3, out[1], 64);
    } else {
        _tile_stored(0, out[0], 64);
        _tile_stored(1, out[1], 64);
    }
}

/* sums += scales of group g, one a row, times the group's products. */
INLINE void add_scaled_group(const tile_sums products, const block_scales scales, size_t g,
                             block_sums sums) {
#pragma GCC unroll 8
    for (int r = 0; r < BLOCK; r++) {
        const vf product = _mm512_load_ps(products[r / TILE][r % TILE]);
        _mm512_store_ps(sums[r], _mm512_fmadd_ps(_mm512_set1_ps(scales[r][g]), product,
                                                 _mm512_load_ps(sums[r])));
    }
}

/* What a block's products of one chunk of columns need. */
struct chunk {
    unpack_function unpack;
    block_codes codes; /* each row's, at the chunk's first column */
    size_t group_code_bytes;
    size_t num_groups;
    size_t group_size, last_columns; /* columns of a group, and of the last one */
    const char* x;                   /* panel 0 at the chunk's first column */
    size_t panel_bytes, group_bytes;
    size_t num_panels;
};

INLINE void multiply_chunk(int units, int planes, const struct chunk* chunk,
                           const block_scales scales, block_sums* sums) {
    _Alignas(64) static _Thread_local weight_tiles weights[2];
    _Alignas(64) tile_sums products[2];
    const size_t last = chunk->num_groups - 1;
    size_t done_group = 0, done_panel = 0;
    int odd = 0, started = 0;
    chunk->unpack(chunk->codes, 0, last == 0 ? chunk->last_columns : chunk->group_size, weights[0]);
    for (size_t g = 0; g <= last; g++) {
        for (size_t p = 0; p < chunk->num_panels; p++) {
            const char* x = chunk->x + p * chunk->panel_bytes + g * chunk->group_bytes;
            multiply_group(odd, units, planes, weights[g % 2], x);
            /* While the unit works: the next group's codes, the last product's scaling. */
            if (p == 0 && g < last)
                chunk->unpack(chunk->codes, (g + 1) * chunk->group_code_bytes,
                              g + 1 == last ? chunk->last_columns : chunk->group_size,
                              weights[(g + 1) % 2]);
            if (started) {
                store_group(!odd, products[!odd]);
                add_scaled_group(products[!odd], scales, done_group, sums[done_panel]);
            }
            started = 1;
            done_group = g;
            done_panel = p;
            odd = !odd;
        }
    }
    store_group(!odd, products[!odd]);
    add_scaled_group(products[!odd], scales, done_group, sums[done_panel]);
}

#define MULTIPLY(units, planes)                                                                    \
    NOINLINE void multiply_##units##_##planes(const struct chunk* chunk,                           \
                                              const block_scales scales, block_sums* sums) {       \
        multiply_chunk(units, planes, chunk, scales, sums);                                        \
    }
MULTIPLY(1, 1)
MULTIPLY(1, 2)
MULTIPLY(1, 3)
MULTIPLY(2, 1)
MULTIPLY(2, 2)
MULTIPLY(2, 3)
MULTIPLY(4, 1)
MULTIPLY(4, 2)
MULTIPLY(4, 3)

typedef void (*multiply_function)(const struct chunk*, const block_scales, block_sums*);

static multiply_function choose_multiply(const struct kandiga_matrix* w) {
    static const multiply_function functions[3][3] = {
        {multiply_1_1, multiply_1_2, multiply_1_3},
        {multiply_2_1, multiply_2_2, multiply_2_3},
        {multiply_4_1, multiply_4_2, multiply_4_3}};
    return functions[group_columns(w) / 64][num_planes(w) - 1];
}

/* A block's sums over all columns, for num_panels panels. */
static void multiply_block(const struct kandiga_matrix* w, const char* panels, size_t num_panels,
                           const size_t* rows, block_sums* sums) {
    _Alignas(64) static _Thread_local block_scales scales, zeros;
    const multiply_function multiply = choose_multiply(w);
    const size_t row_bytes =
        w->bits ? w->in_features * (size_t)w->bits / 8 : w->in_features * sizeof(uint16_t);
    const size_t column_bits = w->bits ? (size_t)w->bits : 16;
    const size_t bytes = panel_bytes(w);
    struct chunk chunk = {
        .unpack = choose_unpack(w),
        .group_size = group_columns(w),
        .group_code_bytes = group_columns(w) * column_bits / 8,
        .panel_bytes = bytes,
        .group_bytes = group_columns(w) / UNIT * unit_bytes(w),
        .num_panels = num_panels,
    };
    memset(sums, 0, num_panels * sizeof *sums);
    for (size_t begin = 0; begin < w->in_features; begin += CHUNK_COLUMNS) {
        size_t columns = min_size(w->in_features - begin, CHUNK_COLUMNS);
        chunk.num_groups = (columns + chunk.group_size - 1) / chunk.group_size;
        chunk.last_columns = columns - (chunk.num_groups - 1) * chunk.group_size;
        chunk.x = panels + begin / UNIT * unit_bytes(w);
        for (size_t r = 0; r < BLOCK; r++)
            chunk.codes[r] =
                (const uint8_t*)w->weight + rows[r] * row_bytes + begin * column_bits / 8;
        if (w->bits) {
            size_t first_group = begin / chunk.group_size;
            load_scales(w, w->scales, rows, first_group, chunk.num_groups, scales);
            load_scales(w, w->zeros, rows, first_group, chunk.num_groups, zeros);
            const char* group_sums =
                panels + sums_offset(w, chunk.group_size) + first_group * TILE * sizeof(float);
            for (size_t p = 0; p < num_panels; p++)
                add_zeros(zeros, (const float*)(group_sums + p * bytes), chunk.num_groups, sums[p]);
        } else {
            for (size_t r = 0; r < BLOCK; r++)
                for (size_t g = 0; g < chunk.num_groups; g++)
                    scales[r][g] = 1.0f;
        }
        multiply(&chunk, scales, sums);
    }
}

static float load_number(enum kandiga_dtype dtype, const void* data, size_t index) {
    if (dtype == KANDIGA_F32)
        return ((const float*)data)[index];
    uint16_t half = ((const uint16_t*)data)[index];
    return dtype == KANDIGA_F16 ? half_to_float(half) : kandiga_bf16_to_f32(half);
}

/* One panel's sums of a half block, transposed, plus bias, to num_rows numbers of each token. */
static void write_half(float sums[TILE][TILE], const float* bias, size_t num_tokens,
                       size_t num_rows, float* out, size_t out_stride) {
    vf s[16];
    for (int r = 0; r < 16; r++)
        s[r] = _mm512_load_ps(sums[r]);
    transpose(s);
    const vf added = _mm512_loadu_ps(bias);
    _Alignas(64) float columns[TILE][TILE];
    for (int t = 0; t < 16; t++)
        _mm512_store_ps(columns[t], _mm512_add_ps(s[t], added));
    for (size_t t = 0; t < num_tokens; t++)
        _mm512_mask_storeu_ps(out + t * out_stride, vf_mask(num_rows), _mm512_load_ps(columns[t]));
}

static void rows(const struct kandiga_matrix* w, const void* panels, size_t num_tokens,
                 size_t row_begin, size_t row_end, float* out, size_t out_stride) {
    _Alignas(64) block_sums sums[KANDIGA_MAX_PANELS];
    const size_t num_panels = (num_tokens + TILE - 1) / TILE;
    configure_tiles();
    for (size_t row = row_begin; row < row_end; row += BLOCK) {
        /* Past the last row the block repeats it, as quant_body.inc does. */
        size_t block[BLOCK];
        float bias[BLOCK] = {0};
        for (size_t r = 0; r < BLOCK; r++) {
            block[r] = min_size(row + r, row_end - 1);
            if (w->bias)
                bias[r] = load_number(w->bias_dtype, w->bias, block[r]);
        }
        multiply_block(w, panels, num_panels, block, sums);
        for (size_t p = 0; p < num_panels; p++)
            for (size_t half = 0; half < BLOCK && row + half < row_end; half += TILE)
                write_half(sums[p] + half, bias + half, min_size(num_tokens - p * TILE, TILE),
                           min_size(row_end - row - half, TILE),
                           out + p * TILE * out_stride + (row + half - row_begin), out_stride);
    }
    _tile_release();
}

const struct gemm_ops kandiga_gemm_amx = {
    .serves = serves,
    .panel_bytes = panel_bytes,
    .prepare = prepare,
    .rows = rows,
};
