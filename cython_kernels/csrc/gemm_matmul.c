/* Splitting matrices times many tokens over the threads. */
#include "dispatch.h"
#include "gemm.h"
#include "matmul.h"
#include "threadpool.h"

/* Fewer tokens are as quick through quant_ops. */
#define MIN_TOKENS 4
/* Panels worked on at a time: half of a second-level cache of 2 MB. */
#define PANELS_BYTES (1u << 20)
/* A block of the kernel is 32 rows. */
#define ROWS_MULTIPLE 32

struct job {
    const struct kandiga_matrix* matrices[KANDIGA_MAX_MATRICES]; /* of one kind of panel */
    float* outs[KANDIGA_MAX_MATRICES];
    size_t num_matrices;
    const float* x; /* (num_tokens, in_features), this chunk's */
    size_t first_token;
    size_t num_tokens;
    char* panels;
    size_t panel_bytes;
    size_t rows_per_item;
    size_t first_item[KANDIGA_MAX_MATRICES + 1];
};

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t div_up(size_t n, size_t divisor) {
    return (n + divisor - 1) / divisor;
}

int kandiga_gemm_serves(const struct kandiga_matrix* w, size_t num_tokens) {
    const struct gemm_ops* ops = kandiga_gemm_of(w);
    return num_tokens >= MIN_TOKENS && !kandiga_rows_as_alone && ops->serves != NULL &&
           ops->serves(w);
}

static void prepare_item(void* context, size_t item) {
    const struct job* job = context;
    const struct kandiga_matrix* w = job->matrices[0];
    size_t first = item * KANDIGA_PANEL_TOKENS;
    size_t num_tokens = min_size(job->num_tokens - first, KANDIGA_PANEL_TOKENS);
    const float* x[KANDIGA_PANEL_TOKENS];
    for (size_t t = 0; t < num_tokens; t++)
        x[t] = job->x + (first + t) * w->in_features;
    kandiga_gemm_of(w)->prepare(w, x, num_tokens, job->panels + item * job->panel_bytes);
}

static void rows_item(void* context, size_t item) {
    const struct job* job = context;
    size_t m = 0;
    while (item >= job->first_item[m + 1])
        m++;
    const struct kandiga_matrix* w = job->matrices[m];
    size_t begin = (item - job->first_item[m]) * job->rows_per_item;
    size_t end = min_size(begin + job->rows_per_item, w->out_features);
    kandiga_gemm_of(w)->rows(w, job->panels, job->num_tokens, begin, end,
                             job->outs[m] + job->first_token * w->out_features + begin,
                             w->out_features);
}

/* Cut every matrix into items of rows_per_item rows, about eight items a thread. */
static void cut_rows(struct job* job) {
    size_t total_rows = 0;
    for (size_t m = 0; m < job->num_matrices; m++)
        total_rows += job->matrices[m]->out_features;
    size_t rows = total_rows / ((size_t)kandiga_num_threads() * 8);
    job->rows_per_item = kandiga_round_up(rows > 0 ? min_size(rows, 256) : 1, ROWS_MULTIPLE);
    job->first_item[0] = 0;
    for (size_t m = 0; m < job->num_matrices; m++)
        job->first_item[m + 1] =
            job->first_item[m] + div_up(job->matrices[m]->out_features, job->rows_per_item);
}

/* All matrices of a job over all tokens. */
static int run_job(struct job* job, const float* x, size_t num_tokens) {
    const struct kandiga_matrix* w = job->matrices[0];
    job->panel_bytes = kandiga_gemm_of(w)->panel_bytes(w);
    size_t num_panels = min_size(div_up(num_tokens, KANDIGA_PANEL_TOKENS), KANDIGA_MAX_PANELS);
    num_panels = min_size(num_panels, PANELS_BYTES / job->panel_bytes + 1);
    job->panels = kandiga_pool_scratch(num_panels * job->panel_bytes);
    if (job->panels == NULL)
        return -1;
    cut_rows(job);
    size_t chunk_tokens = num_panels * KANDIGA_PANEL_TOKENS;
    for (size_t t = 0; t < num_tokens; t += chunk_tokens) {
        job->x = x + t * w->in_features;
        job->first_token = t;
        job->num_tokens = min_size(num_tokens - t, chunk_tokens);
        kandiga_parallel_for(prepare_item, job, div_up(job->num_tokens, KANDIGA_PANEL_TOKENS));
        kandiga_parallel_for(rows_item, job, job->first_item[job->num_matrices]);
    }
    return 0;
}

int kandiga_gemm_matmul_many(const struct kandiga_matrix* const* matrices, float* const* outs,
                             size_t num_matrices, const float* x, size_t num_tokens) {
    int taken[KANDIGA_MAX_MATRICES] = {0};
    int status = 0;
    kandiga_pool_hold();
    for (size_t first = 0; first < num_matrices && status == 0; first++) {
        if (taken[first])
            continue;
        struct job job = {.num_matrices = 0};
        for (size_t m = first; m < num_matrices; m++) {
            if (taken[m] || !kandiga_same_panel(matrices[first], matrices[m]))
                continue;
            taken[m] = 1;
            job.matrices[job.num_matrices] = matrices[m];
            job.outs[job.num_matrices++] = outs[m];
        }
        status = run_job(&job, x, num_tokens);
    }
    kandiga_pool_release();
    return status;
}
