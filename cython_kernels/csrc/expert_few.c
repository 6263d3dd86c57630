#include "expert_few.h"
#include "dispatch.h"
#include "pieces.h"
#include "threadpool.h"
#include <sched.h>
#include <stdatomic.h>

/* What is read next is asked for while something else is being read: its first rows, in bytes. */
#define HEAD_BYTES 2048

/*
 * One job in two steps, gate and up of all experts, then down of all, with no barrier between them:
 * pieces of the first step are all taken before the first of the second, and who finishes the last
 * rows of an expert's gate and up prepares its h and says so. A row of a step is a row of an
 * expert: number expert * rows of the matrix + row.
 */
struct run {
    const struct kandiga_expert_layout* layout;
    const struct kandiga_few* experts;
    size_t num_experts, hidden_size, intermediate_size;
    float* out;
    struct kandiga_pieces gate_up, down;
    float* prepared_x; /* (1 or 2 orders, rows), only the first row of each token */
    size_t order_stride;
    float* gate; /* (rows, intermediate padded to 16) */
    float* up;
    float* prepared_h;
    size_t hidden_floats, intermediate_floats, activated_stride;
    /* Of gate and up, and one more for preparing h; 0: h is ready. */
    _Atomic size_t rows_left[KANDIGA_FEW_ROWS];
    /* Rows are counted in the order of the experts: each one's first, and of a row the first of the
     * same token. */
    size_t begin_of[KANDIGA_FEW_ROWS];
    size_t first_row_of[KANDIGA_FEW_ROWS];
};

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t num_orders(const struct kandiga_expert_layout* layout) {
    return kandiga_same_order(&layout->gate.matrix, &layout->up.matrix) ? 1 : 2;
}

size_t kandiga_expert_few_floats(const struct kandiga_expert_layout* layout, size_t num_rows) {
    size_t intermediate = layout->gate.matrix.out_features;
    return num_rows *
           (num_orders(layout) * kandiga_prepared_floats(layout->gate.matrix.in_features) +
            2 * kandiga_round_up(intermediate, 16) + kandiga_prepared_floats(intermediate));
}

/* Ask for the first rows from `row` on. */
static void prefetch_head(const struct kandiga_matrix* w, size_t row) {
    if (w->bits == 0)
        return;
    size_t row_bytes = w->in_features * (size_t)w->bits / 8;
    size_t groups_bytes =
        w->in_features / (size_t)w->group_size * (w->dtype == KANDIGA_F32 ? 4 : 2);
    const char* codes = (const char*)w->weight + row * row_bytes;
    for (size_t i = 0; i < HEAD_BYTES; i += 64)
        __builtin_prefetch(codes + i, 0, 2);
    for (size_t i = 0; i < HEAD_BYTES / 8; i += 64) {
        __builtin_prefetch((const char*)w->scales + row * groups_bytes + i, 0, 2);
        __builtin_prefetch((const char*)w->zeros + row * groups_bytes + i, 0, 2);
    }
}

static void prepare_h(const struct run* run, size_t expert) {
    for (size_t i = 0; i < run->experts[expert].num_rows; i++) {
        size_t row = run->begin_of[expert] + i;
        kandiga_prepare(&run->layout->down.matrix, run->gate + row * run->activated_stride,
                        run->prepared_h + row * run->intermediate_floats);
    }
}

static void gate_up_rows(struct run* run, size_t expert, size_t begin, size_t end) {
    const struct kandiga_expert_layout* layout = run->layout;
    const size_t first = run->begin_of[expert], count = run->experts[expert].num_rows;
    const struct kandiga_matrix gate = kandiga_bind(&layout->gate, run->experts[expert].address);
    const struct kandiga_matrix up = kandiga_bind(&layout->up, run->experts[expert].address);
    const float* gate_x[KANDIGA_FEW_TOKENS];
    const float* up_x[KANDIGA_FEW_TOKENS];
    for (size_t i = 0; i < count; i++) {
        gate_x[i] = run->prepared_x + run->first_row_of[first + i] * run->hidden_floats;
        up_x[i] = gate_x[i] + run->order_stride;
    }
    float* gate_out = run->gate + first * run->activated_stride + begin;
    float* up_out = run->up + first * run->activated_stride + begin;
    prefetch_head(&up, begin);
    kandiga_rows(&gate, gate_x, count, begin, end, gate_out, run->activated_stride);
    if (end == run->intermediate_size && expert + 1 < run->num_experts) {
        const struct kandiga_matrix next =
            kandiga_bind(&layout->gate, run->experts[expert + 1].address);
        prefetch_head(&next, 0);
    }
    kandiga_rows(&up, up_x, count, begin, end, up_out, run->activated_stride);
    for (size_t i = 0; i < count; i++)
        kandiga_quant.swiglu(gate_out + i * run->activated_stride,
                             up_out + i * run->activated_stride,
                             gate_out + i * run->activated_stride, end - begin);
    if (atomic_fetch_sub(&run->rows_left[expert], end - begin) == end - begin + 1) {
        prepare_h(run, expert);
        atomic_store(&run->rows_left[expert], 0);
    }
}

static void down_rows(struct run* run, size_t expert, size_t begin, size_t end) {
    const size_t first = run->begin_of[expert], count = run->experts[expert].num_rows;
    const struct kandiga_matrix down =
        kandiga_bind(&run->layout->down, run->experts[expert].address);
    const float* h[KANDIGA_FEW_TOKENS];
    for (size_t i = 0; i < count; i++)
        h[i] = run->prepared_h + (first + i) * run->intermediate_floats;
    if (end == run->hidden_size && expert + 1 < run->num_experts) {
        const struct kandiga_matrix next =
            kandiga_bind(&run->layout->down, run->experts[expert + 1].address);
        prefetch_head(&next, 0);
    }
    while (atomic_load(&run->rows_left[expert]) != 0)
        sched_yield();
    float* out = run->out + run->experts[expert].first_row * run->hidden_size + begin;
    kandiga_rows(&down, h, count, begin, end, out, run->hidden_size);
}

static void run_piece(void* context, size_t item) {
    struct run* run = context;
    const int is_down = item >= run->gate_up.count;
    const struct kandiga_pieces* pieces = is_down ? &run->down : &run->gate_up;
    const size_t piece = is_down ? item - run->gate_up.count : item;
    const size_t num_rows = is_down ? run->hidden_size : run->intermediate_size;
    for (size_t row = pieces->begins[piece]; row < pieces->begins[piece + 1];) {
        const size_t expert = row / num_rows, begin = row % num_rows;
        const size_t end = min_size(num_rows, begin + pieces->begins[piece + 1] - row);
        if (is_down)
            down_rows(run, expert, begin, end);
        else
            gate_up_rows(run, expert, begin, end);
        row += end - begin;
    }
}

/* Rows of the same token share what its first row prepares. */
static void prepare_x(struct run* run, const int32_t* rows, const float* x) {
    int32_t tokens[KANDIGA_FEW_ROWS];
    size_t row = 0;
    for (size_t j = 0; j < run->num_experts; j++) {
        run->begin_of[j] = row;
        for (size_t i = 0; i < run->experts[j].num_rows; i++, row++) {
            tokens[row] = rows[run->experts[j].first_row + i];
            size_t first = 0;
            while (tokens[first] != tokens[row])
                first++;
            run->first_row_of[row] = first;
            if (first < row)
                continue;
            const float* token = x + (size_t)tokens[row] * run->hidden_size;
            float* prepared = run->prepared_x + row * run->hidden_floats;
            kandiga_prepare(&run->layout->gate.matrix, token, prepared);
            if (run->order_stride)
                kandiga_prepare(&run->layout->up.matrix, token, prepared + run->order_stride);
        }
    }
}

static size_t row_bytes(const struct kandiga_projection* p) {
    return p->matrix.in_features * (size_t)(p->matrix.bits > 0 ? p->matrix.bits : 16) / 8;
}

void kandiga_expert_few(const struct kandiga_expert_layout* layout,
                        const struct kandiga_few* experts, size_t num_experts, const int32_t* rows,
                        const float* x, float* out, float* scratch) {
    size_t num_rows = 0;
    for (size_t j = 0; j < num_experts; j++)
        num_rows += experts[j].num_rows;
    struct run run = {
        .layout = layout,
        .experts = experts,
        .num_experts = num_experts,
        .hidden_size = layout->gate.matrix.in_features,
        .intermediate_size = layout->gate.matrix.out_features,
        .out = out,
    };
    run.hidden_floats = kandiga_prepared_floats(run.hidden_size);
    run.intermediate_floats = kandiga_prepared_floats(run.intermediate_size);
    run.activated_stride = kandiga_round_up(run.intermediate_size, 16);
    run.order_stride = num_orders(layout) == 2 ? num_rows * run.hidden_floats : 0;
    run.prepared_x = scratch;
    run.prepared_h = run.prepared_x + num_orders(layout) * num_rows * run.hidden_floats;
    run.gate = run.prepared_h + num_rows * run.intermediate_floats;
    run.up = run.gate + num_rows * run.activated_stride;
    prepare_x(&run, rows, x);
    for (size_t j = 0; j < num_experts; j++)
        atomic_init(&run.rows_left[j], run.intermediate_size + 1);
    const size_t num_threads = (size_t)kandiga_num_threads();
    kandiga_cut(&run.gate_up, num_experts * run.intermediate_size,
                kandiga_piece_rows(row_bytes(&layout->gate) + row_bytes(&layout->up)), num_threads);
    kandiga_cut(&run.down, num_experts * run.hidden_size,
                kandiga_piece_rows(row_bytes(&layout->down)), num_threads);
    kandiga_parallel_for(run_piece, &run, run.gate_up.count + run.down.count);
}
