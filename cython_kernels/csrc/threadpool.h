#ifndef KANDIGA_THREADPOOL_H
#define KANDIGA_THREADPOOL_H

#include <stddef.h>

/*
 * One persistent pool of threads in the process. Threads start with the first parallel_for, spin
 * for some microseconds between jobs and then sleep. After a fork the child starts its own.
 */

/* Work on item number `item`. Items of a job run in any order, on any thread. */
typedef void (*kandiga_task)(void* context, size_t item);

/*
 * Run task(context, i) for every i < num_items and return when all are done. The caller works too.
 * Calls from several threads take turns; a call from inside a task runs its items in place.
 */
void kandiga_parallel_for(kandiga_task task, void* context, size_t num_items);

/* Threads that work on a job, the caller counted. */
int kandiga_num_threads(void);
/* Ends the running threads; the next job starts the new number. num_threads >= 1. */
void kandiga_set_num_threads(int num_threads);

/*
 * Hold the pool over several jobs that share the scratch buffer. Nests. parallel_for may be called
 * while holding it.
 */
void kandiga_pool_hold(void);
void kandiga_pool_release(void);

/*
 * At least num_bytes of memory, aligned to 64 bytes, good until the next call or the release. Kept
 * and only ever grown, so that kernels allocate nothing in the steady state. NULL: out of memory.
 */
void* kandiga_pool_scratch(size_t num_bytes);

#endif
