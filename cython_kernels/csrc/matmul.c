#include "matmul.h"
#include "dispatch.h"
#include "gemm.h"
#include "pieces.h"
#include "threadpool.h"

/* Below this many multiplications a second thread costs more than it brings (a job is about 2 us).
 */
#define MIN_PARALLEL_WORK 65536

struct job {
    const struct kandiga_matrix* const* matrices;
    float* const* outs;
    size_t num_matrices;
    size_t in_features;
    const float* x; /* (num_tokens, in_features), this block's */
    size_t first_token;
    size_t num_tokens; /* in this block */

    /* One prepared copy of x for each order in which the matrices want it. */
    const struct kandiga_matrix* orders[KANDIGA_MAX_MATRICES];
    size_t num_orders;
    size_t order_of[KANDIGA_MAX_MATRICES];
    float* prepared; /* (num_orders, num_tokens, prepared_floats) */
    size_t prepared_floats;

    size_t first_row[KANDIGA_MAX_MATRICES + 1]; /* of each matrix, counted through all of them */
    struct kandiga_pieces pieces;
};

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static float* prepared_token(const struct job* job, size_t order, size_t token) {
    return job->prepared + (order * job->num_tokens + token) * job->prepared_floats;
}

static void find_orders(struct job* job) {
    for (size_t m = 0; m < job->num_matrices; m++) {
        size_t order = 0;
        while (order < job->num_orders && !kandiga_same_order(job->orders[order], job->matrices[m]))
            order++;
        if (order == job->num_orders)
            job->orders[job->num_orders++] = job->matrices[m];
        job->order_of[m] = order;
    }
}

/* Cut the rows of all matrices, one after another, into pieces. */
static void cut_rows(struct job* job) {
    job->first_row[0] = 0;
    for (size_t m = 0; m < job->num_matrices; m++)
        job->first_row[m + 1] = job->first_row[m] + job->matrices[m]->out_features;
    size_t total_rows = job->first_row[job->num_matrices];
    const struct kandiga_matrix* w = job->matrices[0];
    int is_small = total_rows * job->in_features * job->num_tokens < MIN_PARALLEL_WORK;
    size_t row_bytes = job->in_features * (size_t)(w->bits > 0 ? w->bits : 16) / 8;
    kandiga_cut(&job->pieces, total_rows, kandiga_piece_rows(row_bytes),
                is_small ? 1 : (size_t)kandiga_num_threads());
}

static void prepare_item(void* context, size_t item) {
    const struct job* job = context;
    size_t order = item / job->num_tokens, token = item % job->num_tokens;
    kandiga_prepare(job->orders[order], job->x + token * job->in_features,
                    prepared_token(job, order, token));
}

/* Rows begin to end of matrix m. */
static void matrix_rows(const struct job* job, size_t m, size_t begin, size_t end) {
    const struct kandiga_matrix* w = job->matrices[m];
    const float* prepared[KANDIGA_MAX_TOKENS];
    for (size_t t = 0; t < job->num_tokens; t++)
        prepared[t] = prepared_token(job, job->order_of[m], t);
    kandiga_rows(w, prepared, job->num_tokens, begin, end,
                 job->outs[m] + job->first_token * w->out_features + begin, w->out_features);
}

static void rows_item(void* context, size_t item) {
    const struct job* job = context;
    size_t row = job->pieces.begins[item], end = job->pieces.begins[item + 1];
    for (size_t m = 0; row < end; m++) {
        size_t last = min_size(end, job->first_row[m + 1]);
        if (row < last) {
            matrix_rows(job, m, row - job->first_row[m], last - job->first_row[m]);
            row = last;
        }
    }
}

static void run_block(struct job* job) {
    size_t num_prepares = job->num_orders * job->num_tokens;
    if (num_prepares * job->in_features < MIN_PARALLEL_WORK) {
        for (size_t i = 0; i < num_prepares; i++)
            prepare_item(job, i);
    } else {
        kandiga_parallel_for(prepare_item, job, num_prepares);
    }
    cut_rows(job);
    kandiga_parallel_for(rows_item, job, job->pieces.count);
}

static int matmul_many(const struct kandiga_matrix* const* matrices, float* const* outs,
                       size_t num_matrices, const float* x, size_t num_tokens) {
    struct job job = {.matrices = matrices,
                      .outs = outs,
                      .num_matrices = num_matrices,
                      .in_features = matrices[0]->in_features};
    find_orders(&job);
    job.prepared_floats = kandiga_prepared_floats(job.in_features);
    kandiga_pool_hold();
    job.prepared = kandiga_pool_scratch(job.num_orders * min_size(num_tokens, KANDIGA_MAX_TOKENS) *
                                        job.prepared_floats * sizeof(float));
    int status = job.prepared ? 0 : -1;
    for (size_t t = 0; status == 0 && t < num_tokens; t += KANDIGA_MAX_TOKENS) {
        job.x = x + t * job.in_features;
        job.first_token = t;
        job.num_tokens = min_size(num_tokens - t, KANDIGA_MAX_TOKENS);
        run_block(&job);
    }
    kandiga_pool_release();
    return status;
}

int kandiga_matmul_many(const struct kandiga_matrix* const* matrices, float* const* outs,
                        size_t num_matrices, const float* x, size_t num_tokens) {
    const struct kandiga_matrix* parted[KANDIGA_MAX_MATRICES];
    float* parted_outs[KANDIGA_MAX_MATRICES];
    size_t num_gemm = 0, rest = num_matrices;
    if (num_matrices == 0 || num_tokens == 0)
        return 0;
    for (size_t m = 0; m < num_matrices; m++) {
        size_t place = kandiga_gemm_serves(matrices[m], num_tokens) ? num_gemm++ : --rest;
        parted[place] = matrices[m];
        parted_outs[place] = outs[m];
    }
    int status = 0;
    if (num_gemm > 0)
        status = kandiga_gemm_matmul_many(parted, parted_outs, num_gemm, x, num_tokens);
    if (num_gemm < num_matrices && status == 0)
        status = matmul_many(parted + num_gemm, parted_outs + num_gemm, num_matrices - num_gemm, x,
                             num_tokens);
    return status;
}

struct embed_job {
    const struct kandiga_matrix* w;
    const int32_t* ids;
    float* out;
};

static void embed_item(void* context, size_t item) {
    const struct embed_job* job = context;
    size_t n = job->w->in_features;
    kandiga_weight_row(job->w, (size_t)job->ids[item], 0, n, job->out + item * n);
}

void kandiga_embed_rows(const struct kandiga_matrix* w, const int32_t* ids, size_t num_ids,
                        float* out) {
    struct embed_job job = {w, ids, out};
    kandiga_parallel_for(embed_item, &job, num_ids);
}
