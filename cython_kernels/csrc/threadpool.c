#define _GNU_SOURCE
#include "threadpool.h"
#include "cpu.h"
#include "time_split.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/*
 * How long a thread spins before it sleeps. A decode step issues a job every 10 to 100 us, and
 * waking a sleeping thread costs about 50 us, so it must stay awake from one job to the next.
 */
#define SPIN_NANOSECONDS 100000
#define MAX_THREADS 256

/*
 * control is (job number << 32 | next item). A worker takes an item with a compare-and-swap on the
 * whole word, so a worker that wakes late can never take an item of a job it has not read, and the
 * caller waits for items, not for threads: a thread that never got a core costs nothing.
 */
static _Atomic uint64_t control;
static _Atomic(kandiga_task) job_task;
static _Atomic(void*) job_context;
static _Atomic size_t job_items;
static _Atomic size_t items_left;

static pthread_mutex_t hold_lock; /* recursive: one caller at a time */
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_available = PTHREAD_COND_INITIALIZER;
static pthread_cond_t work_done = PTHREAD_COND_INITIALIZER;
static _Atomic int num_sleeping; /* workers in or entering work_available */
static _Atomic int caller_sleeping;
static _Atomic int stopping;

static int wanted_threads; /* 0: not set, one per processor */
static int num_workers;    /* running, the caller not counted */
static int may_spin;
static pthread_t workers[MAX_THREADS];
static void* scratch;
static size_t scratch_bytes;
static _Thread_local int inside_task;

static void spin_pause(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* yield is a no-op on most cores */
#endif
}

static int64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Spin while waiting(argument) holds; 0 when it still holds after SPIN_NANOSECONDS. */
static int spin_while(int (*waiting)(uint64_t), uint64_t argument) {
    if (!may_spin)
        return !waiting(argument);
    int64_t deadline = nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < 32; i++) {
            if (!waiting(argument))
                return 1;
            spin_pause();
        }
    } while (nanoseconds() < deadline);
    return 0;
}

static int no_new_job(uint64_t seen_job) {
    return atomic_load(&control) >> 32 == seen_job && !atomic_load(&stopping);
}

static int items_unfinished(uint64_t unused) {
    (void)unused;
    return atomic_load(&items_left) != 0;
}

/* Take and run items of the job until none is left. */
static void run_items(uint64_t job) {
    inside_task = 1;
    uint64_t seen = atomic_load(&control);
    while (seen >> 32 == job) {
        /* Read before the item is taken: once it is taken the job cannot end, so these are its own.
         */
        kandiga_task task = atomic_load(&job_task);
        void* context = atomic_load(&job_context);
        size_t item = (size_t)(seen & UINT32_MAX);
        if (item >= atomic_load(&job_items))
            break;
        if (!atomic_compare_exchange_weak(&control, &seen, seen + 1))
            continue;
        task(context, item);
        if (atomic_fetch_sub(&items_left, 1) == 1 && atomic_load(&caller_sleeping)) {
            pthread_mutex_lock(&sleep_lock);
            pthread_cond_signal(&work_done);
            pthread_mutex_unlock(&sleep_lock);
        }
        seen = atomic_load(&control);
    }
    inside_task = 0;
}

static void* worker_main(void* first_job) {
    uint64_t seen_job = (uint64_t)(uintptr_t)first_job;
    for (;;) {
        if (!spin_while(no_new_job, seen_job)) {
            pthread_mutex_lock(&sleep_lock);
            atomic_fetch_add(&num_sleeping, 1);
            while (no_new_job(seen_job))
                pthread_cond_wait(&work_available, &sleep_lock);
            atomic_fetch_sub(&num_sleeping, 1);
            pthread_mutex_unlock(&sleep_lock);
        }
        if (atomic_load(&stopping))
            return NULL;
        seen_job = atomic_load(&control) >> 32;
        run_items(seen_job);
    }
}

static void stop_workers(void) {
    atomic_store(&stopping, 1);
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&work_available);
    pthread_mutex_unlock(&sleep_lock);
    for (int i = 0; i < num_workers; i++)
        pthread_join(workers[i], NULL);
    num_workers = 0;
    atomic_store(&stopping, 0);
}

static void start_workers(void) {
    int wanted = kandiga_num_threads() - 1;
    uintptr_t job = (uintptr_t)(atomic_load(&control) >> 32);
    /* With more threads than processors, whoever we wait for needs the one we would spin on. */
    may_spin = wanted < kandiga_cpu_count();
    /* Signals are for the threads that Python knows, except those that report what a thread itself
       did: the system ends the process when one of these is blocked, whatever its handler would
       have done (map_guard.c). */
    sigset_t blocked, before;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (num_workers < wanted) {
        /* A thread the system refuses is one fewer; the job is done all the same. */
        if (pthread_create(&workers[num_workers], NULL, worker_main, (void*)job) != 0)
            break;
        num_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void init_hold_lock(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&hold_lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

/* The child has the pool's memory but none of its threads, and locks in whatever state they were.
 */
static void after_fork_in_child(void) {
    init_hold_lock();
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&work_available, NULL);
    pthread_cond_init(&work_done, NULL);
    atomic_store(&num_sleeping, 0);
    atomic_store(&caller_sleeping, 0);
    num_workers = 0;
}

static void init_once(void) {
    init_hold_lock();
    pthread_atfork(kandiga_pool_hold, kandiga_pool_release, after_fork_in_child);
}

void kandiga_pool_hold(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_once);
    pthread_mutex_lock(&hold_lock);
}

void kandiga_pool_release(void) {
    pthread_mutex_unlock(&hold_lock);
}

static void run_job(kandiga_task task, void* context, size_t num_items) {
    if (num_workers + 1 < kandiga_num_threads())
        start_workers();
    uint64_t last_job = atomic_load(&control) >> 32;
    uint64_t job = (last_job + 1) & UINT32_MAX;
    /* Closed before the fields change: a late worker must not take an item the last job never had.
     */
    atomic_store(&control, last_job << 32 | UINT32_MAX);
    atomic_store(&job_task, task);
    atomic_store(&job_context, context);
    atomic_store(&job_items, num_items);
    atomic_store(&items_left, num_items);
    atomic_store(&control, job << 32);
    if (atomic_load(&num_sleeping) > 0) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&work_available);
        pthread_mutex_unlock(&sleep_lock);
    }
    run_items(job);
    if (!spin_while(items_unfinished, 0)) {
        pthread_mutex_lock(&sleep_lock);
        atomic_store(&caller_sleeping, 1);
        while (items_unfinished(0))
            pthread_cond_wait(&work_done, &sleep_lock);
        atomic_store(&caller_sleeping, 0);
        pthread_mutex_unlock(&sleep_lock);
    }
}

void kandiga_parallel_for(kandiga_task task, void* context, size_t num_items) {
    kandiga_time_begin();
    if (num_items <= 1 || inside_task || kandiga_num_threads() == 1) {
        for (size_t i = 0; i < num_items; i++)
            task(context, i);
    } else {
        kandiga_pool_hold();
        run_job(task, context, num_items);
        kandiga_pool_release();
    }
    kandiga_time_end();
}

int kandiga_num_threads(void) {
    if (wanted_threads == 0) {
        int count = kandiga_cpu_count();
        wanted_threads = count < MAX_THREADS ? count : MAX_THREADS;
    }
    return wanted_threads;
}

void kandiga_set_num_threads(int num_threads) {
    kandiga_pool_hold();
    stop_workers();
    wanted_threads = num_threads < MAX_THREADS ? num_threads : MAX_THREADS;
    kandiga_pool_release();
}

void* kandiga_pool_scratch(size_t num_bytes) {
    if (num_bytes > scratch_bytes) {
        free(scratch);
        scratch = NULL;
        scratch_bytes = 0;
        /* A power of two, so that a growing prompt does not mean a growth at each call. */
        size_t size = 1 << 16;
        while (size < num_bytes)
            size *= 2;
        if (posix_memalign(&scratch, 64, size) != 0)
            return NULL;
        scratch_bytes = size;
    }
    return scratch;
}
