/* The vector kernels' operations of the runner; vector_arguments.py makes their cases. */
#include "runner.h"
#include "vector.h"
#include <stdio.h>

static ptrdiff_t view_number(const struct test_case* c, const char* name, const char* key) {
    char full[32];
    snprintf(full, sizeof full, "%s.%s", name, key);
    return (ptrdiff_t)case_number(c, full);
}

/* An argument's slice of its buffer; `data` holds floats unless the caller knows better. */
static struct rows view(const struct test_case* c, const char* name) {
    return (struct rows){
        .data = (float*)case_buffer(c, name) + view_number(c, name, "start"),
        .n0 = (size_t)view_number(c, name, "n0"),
        .n1 = (size_t)view_number(c, name, "n1"),
        .width = (size_t)view_number(c, name, "width"),
        .stride0 = view_number(c, name, "stride0"),
        .stride1 = view_number(c, name, "stride1"),
    };
}

static void* cache_data(const struct test_case* c, const char* name) {
    const ptrdiff_t start = view_number(c, name, "start");
    char* data = case_buffer(c, name);
    return data + start * (ptrdiff_t)(case_size(c, "half") ? sizeof(uint16_t) : sizeof(float));
}

static float eps(const struct test_case* c) {
    return (float)case_number(c, "eps");
}

static void run_rms_norm(const struct test_case* c) {
    const struct rows x = view(c, "x"), out = view(c, "out");
    vector_rms_norm(&x, case_buffer_or_null(c, "weight"), eps(c), &out);
}

static void run_head_rms_norm(const struct test_case* c) {
    const struct rows x = view(c, "x");
    vector_rms_norm(&x, case_buffer(c, "weight"), eps(c), &x);
}

static void run_add_rms_norm(const struct test_case* c) {
    const struct rows x = view(c, "x"), delta = view(c, "delta"), out = view(c, "out");
    vector_add_rms_norm(&x, &delta, case_buffer(c, "weight"), eps(c), &out);
}

static void run_rms_norm_gated(const struct test_case* c) {
    const struct rows x = view(c, "x"), gate = view(c, "gate"), out = view(c, "out");
    vector_rms_norm_gated(&x, &gate, case_buffer(c, "weight"), eps(c), &out);
}

static void run_l2_normalize(const struct test_case* c) {
    const struct rows x = view(c, "x");
    vector_l2_normalize(&x, eps(c), (float)case_number(c, "scale"));
}

static void run_silu_mul(const struct test_case* c) {
    const struct rows gate = view(c, "gate"), x = view(c, "x"), out = view(c, "out");
    vector_silu_mul(&gate, &x, &out);
}

static void run_sigmoid_mul(const struct test_case* c) {
    const struct rows gate = view(c, "gate"), x = view(c, "x"), out = view(c, "out");
    vector_sigmoid_mul(&x, &gate, &out);
}

static void run_add(const struct test_case* c) {
    const struct rows x = view(c, "x"), y = view(c, "y");
    vector_add(&x, &y);
}

static void run_sigmoid_scale_add(const struct test_case* c) {
    const struct rows x = view(c, "x"), gate = view(c, "gate"), out = view(c, "out");
    vector_sigmoid_scale_add(&x, &gate, &out);
}

static void run_exponential(const struct test_case* c) {
    const struct rows x = view(c, "x"), out = view(c, "out");
    vector_exp(&x, &out);
}

static void run_split_interleaved(const struct test_case* c) {
    struct rows part = view(c, "x");
    for (size_t i = 0; i < case_size(c, "num_outs"); i++) {
        char name[32];
        snprintf(name, sizeof name, "out%zu", i);
        const struct rows out = view(c, name);
        part.width = out.width;
        vector_copy(&part, &out);
        part.data += out.width;
    }
}

static void run_rope(const struct test_case* c) {
    const struct rows x = view(c, "x"), inv_freq = view(c, "inv_freq");
    vector_rope(&x, inv_freq.data, inv_freq.width, (int64_t)case_number(c, "offset"),
                (int)case_number(c, "traditional"), (float)case_number(c, "scale"));
}

static void run_kv_append(const struct test_case* c) {
    static const char* const names[2] = {"keys", "values"};
    for (size_t i = 0; i < 2; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s_new", names[i]);
        const struct rows rows = view(c, name), cache = view(c, names[i]);
        vector_kv_append(&rows, cache_data(c, names[i]), cache.stride0, cache.stride1,
                         case_size(c, "half") != 0, case_size(c, "offset"));
    }
}

static void run_attention(const struct test_case* c) {
    const struct rows q = view(c, "q"), keys = view(c, "keys"), values = view(c, "values");
    const struct rows out = view(c, "out");
    const struct attention_args args = {
        .q = q.data,
        .q_token_stride = q.stride0,
        .q_head_stride = q.stride1,
        .keys = cache_data(c, "keys"),
        .values = cache_data(c, "values"),
        .key_head_stride = keys.stride0,
        .key_stride = keys.stride1,
        .value_head_stride = values.stride0,
        .value_stride = values.stride1,
        .half_cache = case_size(c, "half") != 0,
        .num_tokens = q.n0,
        .num_kv_heads = keys.n0,
        .group = q.n1 / keys.n0,
        .head_dim = q.width,
        .kv_len = case_size(c, "kv_len"),
        .scale = (float)case_number(c, "scale"),
    };
    vector_attention(&args, &out);
}

static void run_causal_conv(const struct test_case* c) {
    const struct rows x = view(c, "x"), weight = view(c, "weight"), out = view(c, "out");
    const struct causal_conv_args args = {
        .x = x.data,
        .x_token_stride = x.stride0,
        .weight = weight.data,
        .state = case_buffer(c, "state"),
        .out = out.data,
        .out_token_stride = out.stride0,
        .num_tokens = x.n0,
        .channels = x.width,
        .taps = weight.n0,
    };
    vector_causal_conv(&args);
}

static void run_gated_delta_gates(const struct test_case* c) {
    const struct rows a = view(c, "a"), b = view(c, "b"), g = view(c, "g"), beta = view(c, "beta");
    vector_gated_delta_gates(&a, &b, case_buffer(c, "a_log"), case_buffer(c, "dt_bias"), &g, &beta);
}

static void run_gated_delta(const struct test_case* c) {
    const struct rows q = view(c, "q"), k = view(c, "k"), v = view(c, "v"), out = view(c, "out");
    const struct rows g = view(c, "g"), beta = view(c, "beta");
    const struct gated_delta_args args = {
        .q = q.data,
        .q_token_stride = q.stride0,
        .q_head_stride = q.stride1,
        .k = k.data,
        .k_token_stride = k.stride0,
        .k_head_stride = k.stride1,
        .v = v.data,
        .v_token_stride = v.stride0,
        .v_head_stride = v.stride1,
        .g = g.data,
        .g_token_stride = g.stride0,
        .beta = beta.data,
        .beta_token_stride = beta.stride0,
        .state = case_buffer(c, "state"),
        .out = out.data,
        .out_token_stride = out.stride0,
        .out_head_stride = out.stride1,
        .num_tokens = q.n0,
        .num_key_heads = q.n1,
        .num_value_heads = v.n1,
        .key_dim = q.width,
        .value_dim = v.width,
    };
    vector_gated_delta(&args);
}

static void run_gated_delta_heads(const struct test_case* c) {
    const struct rows qkv = view(c, "qkv"), z = view(c, "z"), a = view(c, "a"), b = view(c, "b");
    const struct rows weight = view(c, "conv_weight"), norm = view(c, "norm_weight");
    struct rows out = view(c, "out");
    const struct gated_delta_heads_args args = {
        .qkv = qkv.data,
        .qkv_token_stride = qkv.stride0,
        .z = z.data,
        .z_token_stride = z.stride0,
        .a = a.data,
        .a_token_stride = a.stride0,
        .b = b.data,
        .b_token_stride = b.stride0,
        .conv_weight = weight.data,
        .a_log = case_buffer(c, "a_log"),
        .dt_bias = case_buffer(c, "dt_bias"),
        .norm_weight = norm.data,
        .conv_state = case_buffer(c, "conv_state"),
        .state = case_buffer(c, "state"),
        .num_tokens = qkv.n0,
        .num_key_heads = case_size(c, "num_key_heads"),
        .num_value_heads = a.width,
        .key_dim = (qkv.width - a.width * norm.width) / 2 / case_size(c, "num_key_heads"),
        .value_dim = norm.width,
        .conv_taps = weight.n0,
        .norm_eps = (float)case_number(c, "norm_eps"),
        .normalize_eps = (float)case_number(c, "normalize_eps"),
    };
    out.n1 = a.width;
    out.width = norm.width;
    out.stride1 = (ptrdiff_t)norm.width;
    vector_gated_delta_heads(&args, &out);
}

static void run_top_k_routing(const struct test_case* c) {
    const struct rows logits = view(c, "logits");
    vector_top_k(&logits, case_size(c, "top_k"),
                 case_size(c, "all_scores") ? SCORES_OF_ALL : SCORES_OF_SELECTED,
                 case_buffer(c, "indices"), case_buffer(c, "scores"));
}

const struct test_op vector_test_ops[] = {
    {"rms_norm", run_rms_norm},
    {"head_rms_norm", run_head_rms_norm},
    {"add_rms_norm", run_add_rms_norm},
    {"rms_norm_gated", run_rms_norm_gated},
    {"l2_normalize", run_l2_normalize},
    {"silu_mul", run_silu_mul},
    {"sigmoid_mul", run_sigmoid_mul},
    {"add", run_add},
    {"sigmoid_scale_add", run_sigmoid_scale_add},
    {"exponential", run_exponential},
    {"split_interleaved", run_split_interleaved},
    {"rope", run_rope},
    {"kv_append", run_kv_append},
    {"attention", run_attention},
    {"causal_conv", run_causal_conv},
    {"gated_delta_gates", run_gated_delta_gates},
    {"gated_delta", run_gated_delta},
    {"gated_delta_heads", run_gated_delta_heads},
    {"top_k_routing", run_top_k_routing},
    {NULL, NULL},
};
