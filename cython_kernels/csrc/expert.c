#include "expert.h"
#include "dispatch.h"
#include "expert_few.h"
#include "gemm.h"
#include "threadpool.h"

/*
 * Rows in flight at a time. It bounds the scratch memory of a prefill chunk to some megabytes; an
 * expert with more rows walks its weights again for each KANDIGA_MAX_TOKENS of them anyway.
 */
#define WAVE_ROWS 256
/* Rows of gate and up in one item: at 2048 columns of 4 bits, 64 KiB of weights, about 5 us. */
#define GATE_UP_ROWS 32
#define DOWN_ROWS 64
/* Preparing fewer floats than this is quicker done by the caller than handed out. */
#define MIN_PARALLEL_PREPARE 32768

/* Some rows of one expert: at most KANDIGA_MAX_TOKENS, and all in one wave. */
struct group {
    uint64_t address;
    size_t first_row; /* among all rows */
    size_t wave_row;  /* the same row's place in the wave */
    size_t num_rows;
};

struct run {
    const struct kandiga_expert_layout* layout;
    size_t hidden_size, intermediate_size;
    const int32_t* rows;
    const float* x;
    size_t num_tokens;
    float* out;

    /* gate and up quantized differently may want x in different orders: two copies then. */
    int two_orders;
    int by_token; /* prepared x is indexed by token, for the whole call; else by row, for the wave
                   */
    size_t order_stride;
    float* prepared_x; /* (1 or 2 orders, rows of a wave, prepared_floats(hidden)) */
    float* activated;  /* (rows of a wave, intermediate padded to 16) */
    float* prepared_h; /* (rows of a wave, prepared_floats(intermediate)) */

    struct group groups[WAVE_ROWS];
    size_t num_groups;
    size_t wave_rows;
    size_t row_of[WAVE_ROWS]; /* the row that has this place in the wave */
};

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t div_up(size_t n, size_t divisor) {
    return (n + divisor - 1) / divisor;
}

static size_t num_orders(const struct kandiga_expert_layout* layout) {
    return kandiga_same_order(&layout->gate.matrix, &layout->up.matrix) ? 1 : 2;
}

static size_t hidden_floats(const struct run* run) {
    return kandiga_prepared_floats(run->hidden_size);
}

static size_t intermediate_floats(const struct run* run) {
    return kandiga_prepared_floats(run->intermediate_size);
}

static size_t activated_stride(const struct run* run) {
    return kandiga_round_up(run->intermediate_size, 16);
}

size_t kandiga_expert_scratch_floats(const struct kandiga_expert_layout* layout, size_t num_rows) {
    size_t rows = min_size(num_rows, WAVE_ROWS);
    size_t hidden = layout->gate.matrix.in_features;
    size_t intermediate = layout->gate.matrix.out_features;
    size_t row_floats = num_orders(layout) * kandiga_prepared_floats(hidden) +
                        kandiga_round_up(intermediate, 16) + kandiga_prepared_floats(intermediate);
    size_t few = kandiga_expert_few_floats(layout, min_size(num_rows, KANDIGA_FEW_ROWS));
    size_t waves = rows * row_floats;
    return (few > waves ? few : waves) + 16; /* 16: room to align the start to 64 bytes */
}

/* The four steps of a wave, each a job of its own: prepare x, gate and up, prepare h, down. */

static void prepare_x_item(void* context, size_t item) {
    const struct run* run = context;
    size_t token = run->by_token ? item : (size_t)run->rows[run->row_of[item]];
    const float* x = run->x + token * run->hidden_size;
    float* prepared = run->prepared_x + item * hidden_floats(run);
    kandiga_prepare(&run->layout->gate.matrix, x, prepared);
    if (run->two_orders)
        kandiga_prepare(&run->layout->up.matrix, x, prepared + run->order_stride);
}

static void gate_up_item(void* context, size_t item) {
    const struct run* run = context;
    size_t blocks = div_up(run->intermediate_size, GATE_UP_ROWS);
    const struct group* group = &run->groups[item / blocks];
    size_t begin = item % blocks * GATE_UP_ROWS;
    size_t end = min_size(begin + GATE_UP_ROWS, run->intermediate_size);

    const float* gate_x[KANDIGA_MAX_TOKENS];
    const float* up_x[KANDIGA_MAX_TOKENS];
    for (size_t i = 0; i < group->num_rows; i++) {
        size_t row = group->first_row + i;
        size_t index = run->by_token ? (size_t)run->rows[row] : group->wave_row + i;
        gate_x[i] = run->prepared_x + index * hidden_floats(run);
        up_x[i] = gate_x[i] + (run->two_orders ? run->order_stride : 0);
    }
    float gate[KANDIGA_MAX_TOKENS * GATE_UP_ROWS], up[KANDIGA_MAX_TOKENS * GATE_UP_ROWS];
    struct kandiga_matrix w = kandiga_bind(&run->layout->gate, group->address);
    kandiga_rows(&w, gate_x, group->num_rows, begin, end, gate, GATE_UP_ROWS);
    w = kandiga_bind(&run->layout->up, group->address);
    kandiga_rows(&w, up_x, group->num_rows, begin, end, up, GATE_UP_ROWS);
    for (size_t i = 0; i < group->num_rows; i++) {
        size_t row = group->wave_row + i;
        kandiga_quant.swiglu(gate + i * GATE_UP_ROWS, up + i * GATE_UP_ROWS,
                             run->activated + row * activated_stride(run) + begin, end - begin);
    }
}

static void prepare_h_item(void* context, size_t item) {
    const struct run* run = context;
    kandiga_prepare(&run->layout->down.matrix, run->activated + item * activated_stride(run),
                    run->prepared_h + item * intermediate_floats(run));
}

static void down_item(void* context, size_t item) {
    const struct run* run = context;
    size_t blocks = div_up(run->hidden_size, DOWN_ROWS);
    const struct group* group = &run->groups[item / blocks];
    size_t begin = item % blocks * DOWN_ROWS;
    size_t end = min_size(begin + DOWN_ROWS, run->hidden_size);
    const float* h[KANDIGA_MAX_TOKENS];
    for (size_t i = 0; i < group->num_rows; i++)
        h[i] = run->prepared_h + (group->wave_row + i) * intermediate_floats(run);
    struct kandiga_matrix w = kandiga_bind(&run->layout->down, group->address);
    kandiga_rows(&w, h, group->num_rows, begin, end,
                 run->out + group->first_row * run->hidden_size + begin, run->hidden_size);
}

static void parallel_prepare(kandiga_task task, struct run* run, size_t items, size_t floats) {
    if (items * floats >= MIN_PARALLEL_PREPARE) {
        kandiga_parallel_for(task, run, items);
        return;
    }
    for (size_t i = 0; i < items; i++)
        task(run, i);
}

static void run_wave(struct run* run) {
    if (!run->by_token)
        parallel_prepare(prepare_x_item, run, run->wave_rows, run->hidden_size);
    kandiga_parallel_for(gate_up_item, run,
                         run->num_groups * div_up(run->intermediate_size, GATE_UP_ROWS));
    parallel_prepare(prepare_h_item, run, run->wave_rows, run->intermediate_size);
    kandiga_parallel_for(down_item, run, run->num_groups * div_up(run->hidden_size, DOWN_ROWS));
    run->num_groups = 0;
    run->wave_rows = 0;
}

/* The next n rows of an expert, which the wave has space for. */
static void add_group(struct run* run, uint64_t address, size_t first_row, size_t n) {
    run->groups[run->num_groups++] = (struct group){address, first_row, run->wave_rows, n};
    for (size_t i = 0; i < n; i++)
        run->row_of[run->wave_rows++] = first_row + i;
}

/* By the number of its rows, an expert is served by gemm.h, by expert_few.h or in waves. */
enum way { NO_ROWS, GEMM, FEW, WAVES };

static enum way way_of(const struct kandiga_expert_layout* layout, size_t num_rows) {
    if (num_rows == 0)
        return NO_ROWS;
    if (kandiga_gemm_serves_expert(layout, num_rows))
        return GEMM;
    return num_rows <= KANDIGA_FEW_TOKENS ? FEW : WAVES;
}

/* Put the rows of the experts that are served so into waves, and run each wave. */
static void fill_waves(struct run* run, const uint64_t* addresses, size_t num_experts,
                       const int32_t* row_offsets) {
    for (size_t j = 0; j < num_experts; j++) {
        size_t row = (size_t)row_offsets[j], end = (size_t)row_offsets[j + 1];
        if (way_of(run->layout, end - row) != WAVES)
            continue;
        while (row < end) {
            size_t space = WAVE_ROWS - run->wave_rows;
            size_t n = min_size(min_size(end - row, KANDIGA_MAX_TOKENS), space);
            add_group(run, addresses[j], row, n);
            row += n;
            if (run->wave_rows == WAVE_ROWS)
                run_wave(run);
        }
    }
    if (run->num_groups > 0)
        run_wave(run);
}

/* The experts of few rows, as many of them in a call as it takes. */
static void run_few(const struct kandiga_expert_layout* layout, const uint64_t* addresses,
                    size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                    const float* x, float* out, float* scratch) {
    struct kandiga_few experts[KANDIGA_FEW_ROWS];
    size_t num_few = 0, few_rows = 0;
    for (size_t j = 0; j < num_experts; j++) {
        const size_t first = (size_t)row_offsets[j], n = (size_t)row_offsets[j + 1] - first;
        if (way_of(layout, n) != FEW)
            continue;
        if (few_rows + n > KANDIGA_FEW_ROWS) {
            kandiga_expert_few(layout, experts, num_few, rows, x, out, scratch);
            num_few = few_rows = 0;
        }
        experts[num_few++] = (struct kandiga_few){addresses[j], first, n};
        few_rows += n;
    }
    if (num_few > 0)
        kandiga_expert_few(layout, experts, num_few, rows, x, out, scratch);
}

static void run_waves(const struct kandiga_expert_layout* layout, const uint64_t* addresses,
                      size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                      const float* x, size_t num_tokens, float* out, float* scratch) {
    const size_t wave_rows = min_size((size_t)row_offsets[num_experts], WAVE_ROWS);
    struct run run;
    run.layout = layout;
    run.hidden_size = layout->gate.matrix.in_features;
    run.intermediate_size = layout->gate.matrix.out_features;
    run.rows = rows;
    run.x = x;
    run.num_tokens = num_tokens;
    run.out = out;
    run.two_orders = num_orders(layout) == 2;
    run.by_token = num_tokens <= wave_rows;
    run.order_stride = wave_rows * hidden_floats(&run);
    run.prepared_x = scratch;
    run.prepared_h = run.prepared_x + num_orders(layout) * run.order_stride;
    run.activated = run.prepared_h + wave_rows * intermediate_floats(&run);
    run.num_groups = 0;
    run.wave_rows = 0;
    if (run.by_token)
        parallel_prepare(prepare_x_item, &run, num_tokens, run.hidden_size);
    fill_waves(&run, addresses, num_experts, row_offsets);
}

int kandiga_expert_mlp(const struct kandiga_expert_layout* layout, const uint64_t* addresses,
                       size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                       const float* x, size_t num_tokens, float* out, float* scratch) {
    int wanted[WAVES + 1] = {0};
    for (size_t j = 0; j < num_experts; j++)
        wanted[way_of(layout, (size_t)(row_offsets[j + 1] - row_offsets[j]))] = 1;
    float* aligned = (float*)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    int status = 0;
    kandiga_pool_hold();
    if (wanted[GEMM])
        status = kandiga_gemm_expert_mlp(layout, addresses, num_experts, row_offsets, rows, x, out);
    if (wanted[FEW] && status == 0)
        run_few(layout, addresses, num_experts, row_offsets, rows, x, out, aligned);
    if (wanted[WAVES] && status == 0)
        run_waves(layout, addresses, num_experts, row_offsets, rows, x, num_tokens, out, aligned);
    kandiga_pool_release();
    return status;
}

struct combine_job {
    const float* expert_out;
    const float* scores;
    const int32_t* order;
    size_t top_k, hidden_size;
    float* out;
};

static void combine_item(void* context, size_t token) {
    const struct combine_job* job = context;
    for (size_t k = token * job->top_k; k < (token + 1) * job->top_k; k++)
        kandiga_quant.add_scaled(job->scores[k],
                                 job->expert_out + (size_t)job->order[k] * job->hidden_size,
                                 job->out + token * job->hidden_size, job->hidden_size);
}

void kandiga_moe_combine(const float* expert_out, const float* scores, const int32_t* order,
                         size_t num_tokens, size_t top_k, size_t hidden_size, float* out) {
    struct combine_job job = {expert_out, scores, order, top_k, hidden_size, out};
    kandiga_parallel_for(combine_item, &job, num_tokens);
}
