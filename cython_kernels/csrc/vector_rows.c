/* Calls whose rows are independent: norms, elementwise, gates, routing. */
#include "vector_items.h"

#include <math.h>
#include <string.h>

struct row_job {
    void (*row)(const struct row_job* job, size_t i0, size_t i1);
    const struct rows *a, *b, *out;
    const float* weight;
    const float* weight2;
    float eps, scale;
    size_t rows_per_item;
    size_t top_k;
    enum score_mode mode;
    int32_t* indices;
    float* scores;
};

static void run_row_item(void* context, size_t item) {
    const struct row_job* job = context;
    const size_t begin = item * job->rows_per_item;
    const size_t end = min_size(begin + job->rows_per_item, job->a->n0 * job->a->n1);
    size_t i0 = begin / job->a->n1;
    size_t i1 = begin % job->a->n1;
    for (size_t row = begin; row < end; row++) {
        job->row(job, i0, i1);
        if (++i1 == job->a->n1) {
            i1 = 0;
            i0++;
        }
    }
}

static void run_rows(struct row_job job) {
    const size_t num_rows = job.a->n0 * job.a->n1;
    job.rows_per_item = ceil_div(FLOATS_PER_ITEM, job.a->width ? job.a->width : 1);
    kandiga_parallel_for(run_row_item, &job, ceil_div(num_rows, job.rows_per_item));
}

static void rms_norm_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.rms_norm(row_at(job->a, i0, i1), job->weight, job->eps, row_at(job->out, i0, i1),
                            job->a->width);
}

void vector_rms_norm(const struct rows* x, const float* weight, float eps, const struct rows* out) {
    run_rows(
        (struct row_job){.row = rms_norm_row, .a = x, .weight = weight, .eps = eps, .out = out});
}

static void add_rms_norm_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.add_rms_norm(row_at(job->a, i0, i1), row_at(job->b, i0, i1), job->weight,
                                job->eps, row_at(job->out, i0, i1), job->a->width);
}

void vector_add_rms_norm(const struct rows* x, const struct rows* delta, const float* weight,
                         float eps, const struct rows* out) {
    run_rows((struct row_job){
        .row = add_rms_norm_row, .a = x, .b = delta, .weight = weight, .eps = eps, .out = out});
}

static void rms_norm_gated_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.rms_norm_gated(row_at(job->a, i0, i1), row_at(job->b, i0, i1), job->weight,
                                  job->eps, row_at(job->out, i0, i1), job->a->width);
}

void vector_rms_norm_gated(const struct rows* x, const struct rows* gate, const float* weight,
                           float eps, const struct rows* out) {
    run_rows((struct row_job){
        .row = rms_norm_gated_row, .a = x, .b = gate, .weight = weight, .eps = eps, .out = out});
}

static void l2_normalize_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.l2_normalize(row_at(job->a, i0, i1), job->eps, job->scale, job->a->width);
}

void vector_l2_normalize(const struct rows* x, float eps, float scale) {
    run_rows((struct row_job){.row = l2_normalize_row, .a = x, .eps = eps, .scale = scale});
}

static void add_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.add(row_at(job->a, i0, i1), row_at(job->b, i0, i1), job->a->width);
}

void vector_add(const struct rows* x, const struct rows* y) {
    run_rows((struct row_job){.row = add_row, .a = x, .b = y});
}

static void silu_mul_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.silu_mul(row_at(job->a, i0, i1), row_at(job->b, i0, i1),
                            row_at(job->out, i0, i1), job->a->width);
}

void vector_silu_mul(const struct rows* gate, const struct rows* up, const struct rows* out) {
    run_rows((struct row_job){.row = silu_mul_row, .a = gate, .b = up, .out = out});
}

static void sigmoid_mul_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.sigmoid_mul(row_at(job->a, i0, i1), row_at(job->b, i0, i1),
                               row_at(job->out, i0, i1), job->a->width);
}

void vector_sigmoid_mul(const struct rows* x, const struct rows* gate, const struct rows* out) {
    run_rows((struct row_job){.row = sigmoid_mul_row, .a = x, .b = gate, .out = out});
}

static void sigmoid_scale_add_row(const struct row_job* job, size_t i0, size_t i1) {
    const float scale = 1.0f / (1.0f + expf(-*row_at(job->b, i0, i1)));
    kandiga_vector.scale_add(row_at(job->a, i0, i1), scale, row_at(job->out, i0, i1),
                             job->a->width);
}

void vector_sigmoid_scale_add(const struct rows* x, const struct rows* gate,
                              const struct rows* out) {
    run_rows((struct row_job){.row = sigmoid_scale_add_row, .a = x, .b = gate, .out = out});
}

static void exp_row(const struct row_job* job, size_t i0, size_t i1) {
    kandiga_vector.exponential(row_at(job->a, i0, i1), row_at(job->out, i0, i1), job->a->width);
}

void vector_exp(const struct rows* x, const struct rows* out) {
    run_rows((struct row_job){.row = exp_row, .a = x, .out = out});
}

static void copy_row(const struct row_job* job, size_t i0, size_t i1) {
    memcpy(row_at(job->out, i0, i1), row_at(job->a, i0, i1), job->a->width * sizeof(float));
}

void vector_copy(const struct rows* x, const struct rows* out) {
    run_rows((struct row_job){.row = copy_row, .a = x, .out = out});
}

static void gates_row(const struct row_job* job, size_t i0, size_t i1) {
    float* g = row_at(job->out, i0, i1);
    const float* a = row_at(job->a, i0, i1);
    for (size_t h = 0; h < job->a->width; h++) {
        g[h] = delta_decay(a[h], job->weight[h], job->weight2[h]);
    }
}

static void sigmoid_row(const struct row_job* job, size_t i0, size_t i1) {
    float* out = row_at(job->out, i0, i1);
    const float* x = row_at(job->a, i0, i1);
    for (size_t h = 0; h < job->a->width; h++) {
        out[h] = delta_beta(x[h]);
    }
}

void vector_gated_delta_gates(const struct rows* a, const struct rows* b, const float* a_log,
                              const float* dt_bias, const struct rows* g_out,
                              const struct rows* beta_out) {
    run_rows((struct row_job){
        .row = gates_row, .a = a, .weight = a_log, .weight2 = dt_bias, .out = g_out});
    run_rows((struct row_job){.row = sigmoid_row, .a = b, .out = beta_out});
}

static void top_k_row(const struct row_job* job, size_t i0, size_t i1) {
    const size_t row = i0 * job->a->n1 + i1;
    kandiga_vector.top_k(row_at(job->a, i0, i1), job->a->width, job->top_k, job->mode,
                         job->indices + row * job->top_k, job->scores + row * job->top_k);
}

void vector_top_k(const struct rows* logits, size_t top_k, enum score_mode mode, int32_t* indices,
                  float* scores) {
    run_rows((struct row_job){.row = top_k_row,
                              .a = logits,
                              .top_k = top_k,
                              .mode = mode,
                              .indices = indices,
                              .scores = scores});
}
