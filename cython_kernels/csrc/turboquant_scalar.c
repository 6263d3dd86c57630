/* Attention on the codes in plain C: slow, obvious, and what the others are compared with. Scores
 * are exact sums of whole numbers as theirs are; weights are not rounded. */
#include "float16.h"
#include "turboquant_ops.h"
#include "turboquant_record.h"

static void halves_to_floats(const uint16_t* halves, float* out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        out[i] = half_to_float(halves[i]);
    }
}

#include "turboquant_encode.inc"

/* scale of the query times scale of the key times the sum of products of whole numbers. */
static double code_product(const struct turboquant_layout* layout,
                           const struct turboquant_code* code, const uint8_t* record, size_t token,
                           const int32_t* words, float query_scale) {
    const size_t quads = layout->padded_dim / TQ_MEMBERS;
    int32_t sum = 0;
    for (size_t d = 0; d < layout->padded_dim; d++) {
        const size_t quad = d / TQ_MEMBERS;
        int8_t query[TQ_MEMBERS];
        memcpy(query, &words[quad], sizeof query);
        sum += query[d % TQ_MEMBERS] * level_at(code, record, token / LANES * quads + quad,
                                                token % LANES * TQ_MEMBERS + d % TQ_MEMBERS);
    }
    const float key_scale = half_at(record, code->scales, token) * TQ_LEVEL_UNIT;
    return (double)sum * (double)query_scale * (double)key_scale;
}

static double score(const struct turboquant_tile* tile, const uint8_t* record, size_t row,
                    size_t token) {
    const struct turboquant_layout* layout = tile->layout;
    const struct turboquant_queries* queries = tile->queries;
    const size_t at = tile->first_row + row;
    const size_t words = layout->padded_dim / TQ_MEMBERS;
    double sum = code_product(layout, &layout->keys, record, token, queries->codes + at * words,
                              queries->scales[at]);
    if (layout->residual.bits) {
        sum += code_product(layout, &layout->residual, record, token,
                            queries->residual_codes + at * words, queries->residual_scales[at]);
    }
    for (size_t d = 0; d < layout->head_dim; d++) {
        sum += (double)tile->q[row][d] * (double)half_at(record, layout->mean, d);
    }
    return sum * (double)tile->scale;
}

static void add_value(const struct turboquant_tile* tile, const uint8_t* record, size_t token,
                      float weight, float* acc) {
    const struct turboquant_layout* layout = tile->layout;
    const size_t quads = TQ_BLOCK_TOKENS / TQ_MEMBERS;
    const float scale = half_at(record, layout->values.scales, token) * TQ_LEVEL_UNIT;
    for (size_t d = 0; d < layout->padded_dim; d++) {
        const int level = level_at(&layout->values, record, d / LANES * quads + token / TQ_MEMBERS,
                                   d % LANES * TQ_MEMBERS + token % TQ_MEMBERS);
        acc[d] += weight * scale * (float)level;
    }
}

static void attend_row(const struct turboquant_tile* tile, size_t row) {
    float* acc = tile->acc + row * tile->layout->padded_dim;
    double largest = -INFINITY, total = 0.0;
    memset(acc, 0, tile->layout->padded_dim * sizeof(float));
    for (int is_adding = 0; is_adding < 2; is_adding++) {
        for (size_t block = 0; block < tile->num_blocks; block++) {
            const uint8_t* record = tile->blocks[block] + tile->record;
            for (size_t token = 0; token < (size_t)tile->counts[block]; token++) {
                const double value = score(tile, record, row, token);
                if (!is_adding) {
                    largest = value > largest || isnan(value) ? value : largest;
                    continue;
                }
                const double weight = exp(value - largest);
                total += weight;
                add_value(tile, record, token, (float)weight, acc);
            }
        }
    }
    tile->max[row] = (float)largest;
    tile->sum[row] = (float)total;
}

static void attend(const struct turboquant_tile* tile) {
    for (size_t row = 0; row < tile->num_rows; row++) {
        attend_row(tile, row);
    }
}

const struct turboquant_ops kandiga_turboquant_scalar = {
    .encode_keys = encode_keys,
    .encode_values = encode_values,
    .rotate = rotate,
    .prepare = prepare,
    .attend = attend,
};
