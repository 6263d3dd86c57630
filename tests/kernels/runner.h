#ifndef KANDIGA_TEST_RUNNER_H
#define KANDIGA_TEST_RUNNER_H

#include <stddef.h>

/* One case: numbers and buffers by name, as cases.py wrote them. A missing name ends the program.
 */
struct test_case;

double case_number(const struct test_case* c, const char* name);
size_t case_size(const struct test_case* c, const char* name); /* a number >= 0 */
void* case_buffer(const struct test_case* c, const char* name);
void* case_buffer_or_null(const struct test_case* c, const char* name);
size_t case_bytes(const struct test_case* c, const char* name); /* length of a buffer */

/* num_bytes of memory with an inaccessible page right behind (or the sanitizer's guard), and back.
 */
void* guarded_alloc(size_t num_bytes);
void guarded_free(void* memory, size_t num_bytes);

struct test_op {
    const char* name;
    void (*run)(const struct test_case* c);
};

/* All end with a NULL name. */
extern const struct test_op quant_test_ops[];
extern const struct test_op turboquant_test_ops[];
extern const struct test_op vector_test_ops[];

#endif
