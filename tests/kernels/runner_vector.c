/* The vector kernels' operations of the runner; vector_cases.py makes their cases. */
#include "runner.h"

const struct test_op vector_test_ops[] = {
    {NULL, NULL},
};
