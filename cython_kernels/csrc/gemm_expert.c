/* Experts that serve many tokens: each expert's tokens gathered into panels. */
#include "dispatch.h"
#include "gemm.h"
#include "threadpool.h"
#include <stdatomic.h>
#include <stdlib.h>

/* Fewer rows are as quick through quant_ops, many experts' rows at a time. */
#define MIN_ROWS 4
/* Panels of x at a time in a thread's scratch. */
#define PANELS_BYTES (3u << 18)
#define ROWS_PER_ITEM 64
/* With fewer experts than this for each thread they are done one by one, all threads in each. */
#define MIN_EXPERTS_PER_THREAD 4

/* Scratch of one expert at work. */
struct bench {
    char* x_panels;
    char* h_panels;
    float* gate; /* (rows of a pass, intermediate) */
    float* up;
};

struct run {
    const struct kandiga_expert_layout* layout;
    const uint64_t* addresses;
    const int32_t* row_offsets;
    const int32_t* rows;
    const float* x;
    float* out;

    size_t hidden_size, intermediate_size;
    size_t x_panel_bytes, h_panel_bytes; /* of one panel */
    size_t pass_rows;                    /* most rows of one pass over an expert */
    char* scratch;
    size_t bench_bytes;

    uint64_t* experts; /* served: number of rows << 32 | index, most rows first */
    size_t num_experts;
    _Atomic size_t next_expert;
};

/* One expert's rows first to first + num_rows, through one of its projections. */
struct pass {
    const struct run* run;
    struct bench bench;
    size_t first_row, num_rows;
    struct kandiga_matrix gate, up, down;
    const struct kandiga_matrix* prepared_for;
};

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t div_up(size_t n, size_t divisor) {
    return (n + divisor - 1) / divisor;
}

static int serves(const struct kandiga_projection* p) {
    const struct gemm_ops* ops = kandiga_gemm_of(&p->matrix);
    return ops->serves != NULL && ops->serves(&p->matrix);
}

int kandiga_gemm_serves_expert(const struct kandiga_expert_layout* layout, size_t num_rows) {
    return num_rows >= MIN_ROWS && !kandiga_rows_as_alone && serves(&layout->gate) &&
           serves(&layout->up) && serves(&layout->down);
}

static void prepare_x_item(void* context, size_t item) {
    const struct pass* pass = context;
    const struct run* run = pass->run;
    const float* x[KANDIGA_PANEL_TOKENS];
    size_t first = item * KANDIGA_PANEL_TOKENS;
    size_t n = min_size(pass->num_rows - first, KANDIGA_PANEL_TOKENS);
    for (size_t i = 0; i < n; i++)
        x[i] = run->x + (size_t)run->rows[pass->first_row + first + i] * run->hidden_size;
    kandiga_gemm_of(pass->prepared_for)
        ->prepare(pass->prepared_for, x, n, pass->bench.x_panels + item * run->x_panel_bytes);
}

static void intermediate_rows(const struct pass* pass, const struct kandiga_matrix* w, size_t item,
                              float* out) {
    size_t begin = item * ROWS_PER_ITEM, stride = pass->run->intermediate_size;
    kandiga_gemm_of(w)->rows(w, pass->bench.x_panels, pass->num_rows, begin,
                             min_size(begin + ROWS_PER_ITEM, stride), out + begin, stride);
}

static void gate_item(void* context, size_t item) {
    const struct pass* pass = context;
    intermediate_rows(pass, &pass->gate, item, pass->bench.gate);
}

static void up_item(void* context, size_t item) {
    const struct pass* pass = context;
    intermediate_rows(pass, &pass->up, item, pass->bench.up);
}

/* h = silu(gate) * up over a panel's tokens, into a panel. */
static void prepare_h_item(void* context, size_t item) {
    const struct pass* pass = context;
    const struct run* run = pass->run;
    const float* h[KANDIGA_PANEL_TOKENS];
    size_t first = item * KANDIGA_PANEL_TOKENS;
    size_t n = min_size(pass->num_rows - first, KANDIGA_PANEL_TOKENS);
    for (size_t i = 0; i < n; i++) {
        float* gate = pass->bench.gate + (first + i) * run->intermediate_size;
        const float* up = pass->bench.up + (first + i) * run->intermediate_size;
        kandiga_quant.swiglu(gate, up, gate, run->intermediate_size);
        h[i] = gate;
    }
    kandiga_gemm_of(&pass->down)
        ->prepare(&pass->down, h, n, pass->bench.h_panels + item * run->h_panel_bytes);
}

static void down_item(void* context, size_t item) {
    const struct pass* pass = context;
    size_t begin = item * ROWS_PER_ITEM, stride = pass->run->hidden_size;
    kandiga_gemm_of(&pass->down)
        ->rows(&pass->down, pass->bench.h_panels, pass->num_rows, begin,
               min_size(begin + ROWS_PER_ITEM, stride),
               pass->run->out + pass->first_row * stride + begin, stride);
}

static struct kandiga_matrix bind(const struct kandiga_projection* p, uint64_t address) {
    struct kandiga_matrix w = p->matrix;
    const char* block = (const char*)(uintptr_t)address;
    w.weight = block + p->weight_offset;
    w.scales = block + p->scales_offset;
    w.zeros = block + p->zeros_offset;
    w.bias = p->has_bias ? block + p->bias_offset : NULL;
    return w;
}

static void run_pass(struct pass* pass) {
    const struct run* run = pass->run;
    size_t panels = div_up(pass->num_rows, KANDIGA_PANEL_TOKENS);
    size_t intermediate_items = div_up(run->intermediate_size, ROWS_PER_ITEM);
    pass->prepared_for = &pass->gate;
    kandiga_parallel_for(prepare_x_item, pass, panels);
    kandiga_parallel_for(gate_item, pass, intermediate_items);
    if (!kandiga_same_panel(&pass->gate, &pass->up)) {
        pass->prepared_for = &pass->up;
        kandiga_parallel_for(prepare_x_item, pass, panels);
    }
    kandiga_parallel_for(up_item, pass, intermediate_items);
    kandiga_parallel_for(prepare_h_item, pass, panels);
    kandiga_parallel_for(down_item, pass, div_up(run->hidden_size, ROWS_PER_ITEM));
}

/* All rows of expert j; inside a task the steps of a pass run in place. */
static void run_expert(const struct run* run, size_t j, size_t bench) {
    char* scratch = run->scratch + bench * run->bench_bytes;
    size_t panels = run->pass_rows / KANDIGA_PANEL_TOKENS;
    struct pass pass = {
        .run = run,
        .gate = bind(&run->layout->gate, run->addresses[j]),
        .up = bind(&run->layout->up, run->addresses[j]),
        .down = bind(&run->layout->down, run->addresses[j]),
    };
    pass.bench.x_panels = scratch;
    pass.bench.h_panels = pass.bench.x_panels + panels * run->x_panel_bytes;
    pass.bench.gate = (float*)(pass.bench.h_panels + panels * run->h_panel_bytes);
    pass.bench.up = pass.bench.gate + run->pass_rows * run->intermediate_size;
    size_t end = (size_t)run->row_offsets[j + 1];
    for (size_t row = (size_t)run->row_offsets[j]; row < end; row += run->pass_rows) {
        pass.first_row = row;
        pass.num_rows = min_size(end - row, run->pass_rows);
        run_pass(&pass);
    }
}

/* One thread's: experts as they come. */
static void worker_item(void* context, size_t bench) {
    struct run* run = context;
    for (;;) {
        size_t i = atomic_fetch_add(&run->next_expert, 1);
        if (i >= run->num_experts)
            return;
        run_expert(run, (size_t)(uint32_t)run->experts[i], bench);
    }
}

/* Room for a pass of as many rows as the budget allows and the largest expert has. */
static void plan_scratch(struct run* run, size_t most_rows) {
    const struct kandiga_expert_layout* layout = run->layout;
    size_t gate_bytes = kandiga_gemm_of(&layout->gate.matrix)->panel_bytes(&layout->gate.matrix);
    size_t up_bytes = kandiga_gemm_of(&layout->up.matrix)->panel_bytes(&layout->up.matrix);
    run->x_panel_bytes = gate_bytes > up_bytes ? gate_bytes : up_bytes;
    run->h_panel_bytes = kandiga_gemm_of(&layout->down.matrix)->panel_bytes(&layout->down.matrix);
    size_t panels = min_size(div_up(most_rows, KANDIGA_PANEL_TOKENS), KANDIGA_MAX_PANELS);
    panels = min_size(panels, PANELS_BYTES / run->x_panel_bytes + 1);
    run->pass_rows = panels * KANDIGA_PANEL_TOKENS;
    run->bench_bytes =
        kandiga_round_up(panels * (run->x_panel_bytes + run->h_panel_bytes) +
                             2 * run->pass_rows * run->intermediate_size * sizeof(float),
                         4096);
}

static int by_rows_descending(const void* a, const void* b) {
    const uint64_t left = *(const uint64_t*)a, right = *(const uint64_t*)b;
    return (left < right) - (left > right);
}

/* The experts to serve, into run->experts; returns the most rows of one. */
static size_t choose_experts(struct run* run, size_t num_experts) {
    for (size_t j = 0; j < num_experts; j++) {
        size_t num_rows = (size_t)(run->row_offsets[j + 1] - run->row_offsets[j]);
        if (kandiga_gemm_serves_expert(run->layout, num_rows))
            run->experts[run->num_experts++] = (uint64_t)num_rows << 32 | j;
    }
    qsort(run->experts, run->num_experts, sizeof *run->experts, by_rows_descending);
    return run->num_experts > 0 ? (size_t)(run->experts[0] >> 32) : 0;
}

int kandiga_gemm_expert_mlp(const struct kandiga_expert_layout* layout, const uint64_t* addresses,
                            size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                            const float* x, float* out) {
    struct run run = {
        .layout = layout,
        .addresses = addresses,
        .row_offsets = row_offsets,
        .rows = rows,
        .x = x,
        .out = out,
        .hidden_size = layout->gate.matrix.in_features,
        .intermediate_size = layout->gate.matrix.out_features,
    };
    size_t list_bytes = kandiga_round_up(num_experts * sizeof *run.experts, 4096);
    run.experts = kandiga_pool_scratch(list_bytes);
    if (run.experts == NULL)
        return -1;
    size_t most_rows = choose_experts(&run, num_experts);
    if (run.num_experts == 0)
        return 0;
    plan_scratch(&run, most_rows);
    size_t num_threads = (size_t)kandiga_num_threads();
    int one_each = run.num_experts >= num_threads * MIN_EXPERTS_PER_THREAD;
    char* scratch =
        kandiga_pool_scratch(list_bytes + (one_each ? num_threads : 1) * run.bench_bytes);
    if (scratch == NULL)
        return -1;
    /* Growing the scratch keeps nothing of it. */
    run.experts = (uint64_t*)(void*)scratch;
    run.num_experts = 0;
    choose_experts(&run, num_experts);
    run.scratch = scratch + list_bytes;
    if (one_each) {
        kandiga_parallel_for(worker_item, &run, num_threads);
    } else {
        for (size_t i = 0; i < run.num_experts; i++)
            run_expert(&run, (size_t)(uint32_t)run.experts[i], 0);
    }
    return 0;
}
