/* The quantized kernels' operations of the runner; quant_cases.py makes their cases. */
#include "runner.h"
#include "expert.h"
#include "matmul.h"
#include <stdint.h>
#include <stdio.h>

/* A number whose name is "<prefix>.<name>". */
static size_t prefixed(const struct test_case* c, const char* prefix, const char* name) {
    char full[32];
    snprintf(full, sizeof full, "%s.%s", prefix, name);
    return case_size(c, full);
}

static void* prefixed_buffer(const struct test_case* c, const char* prefix, const char* name) {
    char full[32];
    snprintf(full, sizeof full, "%s.%s", prefix, name);
    return case_buffer_or_null(c, full);
}

/* Shape and element types; the pointers stay unset. */
static struct kandiga_matrix read_shape(const struct test_case* c, const char* prefix) {
    return (struct kandiga_matrix){
        .out_features = prefixed(c, prefix, "out_features"),
        .in_features = prefixed(c, prefix, "in_features"),
        .bits = (int)prefixed(c, prefix, "bits"),
        .group_size = (int)prefixed(c, prefix, "group_size"),
        .dtype = (enum kandiga_dtype)prefixed(c, prefix, "dtype"),
        .bias_dtype = (enum kandiga_dtype)prefixed(c, prefix, "bias_dtype"),
        .arithmetic = (enum kandiga_arithmetic)prefixed(c, prefix, "arithmetic"),
    };
}

static struct kandiga_matrix read_matrix(const struct test_case* c, const char* prefix) {
    struct kandiga_matrix w = read_shape(c, prefix);
    w.weight = prefixed_buffer(c, prefix, "weight");
    w.scales = prefixed_buffer(c, prefix, "scales");
    w.zeros = prefixed_buffer(c, prefix, "biases");
    w.bias = prefixed_buffer(c, prefix, "bias");
    return w;
}

/* Matrices m0, m1, ... of one x; outputs out0, out1, ... */
static void run_matmul(const struct test_case* c) {
    struct kandiga_matrix matrices[KANDIGA_MAX_MATRICES];
    const struct kandiga_matrix* pointers[KANDIGA_MAX_MATRICES];
    float* outs[KANDIGA_MAX_MATRICES];
    size_t count = case_size(c, "num_matrices");
    for (size_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "m%zu", i);
        matrices[i] = read_matrix(c, name);
        pointers[i] = &matrices[i];
        snprintf(name, sizeof name, "out%zu", i);
        outs[i] = case_buffer(c, name);
    }
    size_t num_tokens = case_bytes(c, "x") / sizeof(float) / matrices[0].in_features;
    kandiga_matmul_many(pointers, outs, count, case_buffer(c, "x"), num_tokens);
}

static void run_embed_rows(const struct test_case* c) {
    struct kandiga_matrix w = read_matrix(c, "m0");
    kandiga_embed_rows(&w, case_buffer(c, "ids"), case_bytes(c, "ids") / sizeof(int32_t),
                       case_buffer(c, "out"));
}

static struct kandiga_projection read_projection(const struct test_case* c, const char* prefix) {
    return (struct kandiga_projection){
        .matrix = read_shape(c, prefix),
        .weight_offset = prefixed(c, prefix, "weight_offset"),
        .scales_offset = prefixed(c, prefix, "scales_offset"),
        .zeros_offset = prefixed(c, prefix, "biases_offset"),
        .bias_offset = prefixed(c, prefix, "bias_offset"),
        .has_bias = (int)prefixed(c, prefix, "has_bias"),
    };
}

static void run_expert_mlp(const struct test_case* c) {
    struct kandiga_expert_layout layout = {read_projection(c, "gate"), read_projection(c, "up"),
                                           read_projection(c, "down")};
    size_t num_experts = case_bytes(c, "addresses") / sizeof(uint64_t);
    size_t num_rows = case_bytes(c, "rows") / sizeof(int32_t);
    size_t num_tokens = case_bytes(c, "x") / sizeof(float) / layout.gate.matrix.in_features;
    size_t scratch_bytes = kandiga_expert_scratch_floats(&layout, num_rows) * sizeof(float);
    uint64_t addresses[64];
    /* In the file they count from the start of the blocks. */
    for (size_t j = 0; j < num_experts; j++)
        addresses[j] = (uint64_t)(uintptr_t)case_buffer(c, "blocks") +
                       ((const uint64_t*)case_buffer(c, "addresses"))[j];
    float* scratch = guarded_alloc(scratch_bytes);
    kandiga_expert_mlp(&layout, addresses, num_experts, case_buffer(c, "row_offsets"),
                       case_buffer(c, "rows"), case_buffer(c, "x"), num_tokens,
                       case_buffer(c, "out"), scratch);
    guarded_free(scratch, scratch_bytes);
}

static void run_moe_combine(const struct test_case* c) {
    size_t num_tokens = case_size(c, "num_tokens"), top_k = case_size(c, "top_k");
    kandiga_moe_combine(case_buffer(c, "expert_out"), case_buffer(c, "scores"),
                        case_buffer(c, "order"), num_tokens, top_k, case_size(c, "hidden_size"),
                        case_buffer(c, "out"));
}

const struct test_op quant_test_ops[] = {
    {"matmul", run_matmul},
    {"embed_rows", run_embed_rows},
    {"expert_mlp", run_expert_mlp},
    {"moe_combine", run_moe_combine},
    {NULL, NULL},
};
