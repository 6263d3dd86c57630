/* The end of a mixture of experts: the weighted sum of what its experts answered. */
#include "vector_items.h"

#include <string.h>

static void sum_token(void* context, size_t token) {
    const struct expert_sum_args* args = context;
    float* out = args->out + token * args->hidden_size;
    memset(out, 0, args->hidden_size * sizeof(float));
    if (args->shared) {
        kandiga_vector.scale_add(args->shared + token * args->hidden_size,
                                 1.0f / (1.0f + expf(-args->shared_gate[token])), out,
                                 args->hidden_size);
    }
    for (size_t k = token * args->top_k; k < (token + 1) * args->top_k; k++) {
        kandiga_vector.scale_add(args->results + (size_t)args->order[k] * args->hidden_size,
                                 args->scores[k], out, args->hidden_size);
    }
}

void vector_expert_sum(const struct expert_sum_args* args) {
    struct expert_sum_args job = *args;
    kandiga_parallel_for(sum_token, &job, args->num_tokens);
}
