/* The compressed KV cache's operations of the runner; turboquant_cases.py makes their cases. */
#include "runner.h"
#include "turboquant.h"
#include <string.h>

static struct turboquant_layout layout_of(const struct test_case* c, float* signs) {
    struct turboquant_layout layout;
    turboquant_make_layout(case_size(c, "heads"), case_size(c, "head_dim"),
                           (int)case_number(c, "key_bits"), (int)case_number(c, "value_bits"),
                           (int)case_number(c, "qjl"), &layout);
    const size_t count = layout.stages * layout.head_dim;
    turboquant_signs(TQ_KEY_SEED, count, signs);
    turboquant_signs(TQ_VALUE_SEED, count, signs + count);
    turboquant_signs(TQ_RESIDUAL_SEED, count, signs + 2 * count);
    layout.key_signs = signs;
    layout.value_signs = signs + count;
    layout.residual_signs = signs + 2 * count;
    return layout;
}

static void run_turboquant_encode(const struct test_case* c) {
    float signs[3 * TQ_MAX_STAGES * TQ_MAX_HEAD_DIM];
    const struct turboquant_layout layout = layout_of(c, signs);
    const ptrdiff_t token_stride = (ptrdiff_t)layout.head_dim;
    const ptrdiff_t head_stride = (ptrdiff_t)case_size(c, "capacity") * token_stride;
    const ptrdiff_t start = (ptrdiff_t)case_size(c, "start") * token_stride;
    const uint16_t *keys = case_buffer(c, "keys"), *values = case_buffer(c, "values");
    uint8_t* block = guarded_alloc(layout.block_bytes);
    turboquant_encode(&layout, keys + start, values + start, head_stride, token_stride,
                      case_buffer(c, "energies"), block);
    for (size_t head = 0; head < layout.num_kv_heads; head++) {
        const size_t at = head * TQ_BLOCK_TOKENS * layout.head_dim;
        const uint8_t* record = block + head * layout.record_bytes;
        turboquant_decode(&layout, record, 1, (float*)case_buffer(c, "k") + at);
        turboquant_decode(&layout, record, 0, (float*)case_buffer(c, "v") + at);
    }
    guarded_free(block, layout.block_bytes);
}

static void run_turboquant_attention(const struct test_case* c) {
    enum { MAX_BLOCKS = 16 };
    float signs[3 * TQ_MAX_STAGES * TQ_MAX_HEAD_DIM];
    const struct turboquant_layout layout = layout_of(c, signs);
    const uint8_t* blocks[MAX_BLOCKS];
    const size_t num_blocks = case_size(c, "num_blocks"), dim = layout.head_dim;
    const size_t group = case_size(c, "group"), heads = group * layout.num_kv_heads;
    for (size_t i = 0; i < num_blocks; i++) {
        blocks[i] = (const uint8_t*)case_buffer(c, "blocks") + i * layout.block_bytes;
    }
    const struct turboquant_cache cache = {&layout, blocks, case_buffer(c, "counts"), num_blocks};
    const ptrdiff_t cache_stride = (ptrdiff_t)(case_size(c, "capacity") * dim);
    const struct attention_args args = {
        .q = case_buffer(c, "q"),
        .q_token_stride = (ptrdiff_t)(heads * dim),
        .q_head_stride = (ptrdiff_t)dim,
        .keys = case_buffer(c, "keys"),
        .values = case_buffer(c, "values"),
        .key_head_stride = cache_stride,
        .key_stride = (ptrdiff_t)dim,
        .value_head_stride = cache_stride,
        .value_stride = (ptrdiff_t)dim,
        .half_cache = 1,
        .num_tokens = case_size(c, "tokens"),
        .num_kv_heads = layout.num_kv_heads,
        .group = group,
        .head_dim = dim,
        .kv_len = case_size(c, "tail"),
        .scale = (float)case_number(c, "scale"),
    };
    const struct rows out = {.data = case_buffer(c, "out"),
                             .n0 = args.num_tokens,
                             .n1 = heads,
                             .width = dim,
                             .stride0 = (ptrdiff_t)(heads * dim),
                             .stride1 = (ptrdiff_t)dim};
    turboquant_attention(&cache, &args, &out);
}

const struct test_op turboquant_test_ops[] = {
    {"turboquant_encode", run_turboquant_encode},
    {"turboquant_attention", run_turboquant_attention},
    {NULL, NULL},
};
