#include "map_guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define NO_FAULT UINTPTR_MAX
#define MAX_PREVIOUS 8

/* A list that only grows, so that the handler can walk it at any moment without a lock: a dropped
   guard has start 0 and is used again. */
struct kandiga_map_guard {
    _Atomic(uintptr_t) start, end;
    _Atomic(uintptr_t) fault; /* address of the first page replaced */
    struct kandiga_map_guard* next;
    int in_use;
};

static _Atomic(struct kandiga_map_guard*) guards;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* never taken in the handler */
static uintptr_t page_size;

/* Handlers that were in place when ours was put in front, oldest first. */
static struct sigaction previous[MAX_PREVIOUS];
static _Atomic int num_previous;
static _Atomic int num_passing_on;

/* Whether a page of zeros now lies at the address. Only async-signal-safe calls; mmap is a bare
   system call wherever this runs. */
static int replace_page(uintptr_t address) {
    for (struct kandiga_map_guard* guard = atomic_load(&guards); guard; guard = guard->next) {
        uintptr_t start = atomic_load(&guard->start);
        if (start == 0 || address < start || address >= atomic_load(&guard->end))
            continue;
        uintptr_t page = address - address % page_size;
        uintptr_t none = NO_FAULT;
        atomic_compare_exchange_strong(&guard->fault, &none, page);
        return mmap((void*)page, page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                    0) != MAP_FAILED;
    }
    return 0;
}

static void end_by_default(int signum, const siginfo_t* info) {
    signal(signum, SIG_DFL);
    /* A fault happens again on return; what another process sent does not. */
    if (info->si_code <= 0)
        raise(signum);
}

static void pass_on(int signum, siginfo_t* info, void* context) {
    /* faulthandler, once it has printed, puts back what it found and raises the signal again. If
       what it found was our handler, that comes here a second time: then it is the turn of the
       handler before, and never of the same one again. */
    int nested = atomic_fetch_add(&num_passing_on, 1);
    int last = atomic_load(&num_previous) - 1 - nested;
    if (last < 0) {
        end_by_default(signum, info);
    } else if (previous[last].sa_flags & SA_SIGINFO) {
        previous[last].sa_sigaction(signum, info, context);
    } else if (previous[last].sa_handler == SIG_DFL) {
        end_by_default(signum, info);
    } else if (previous[last].sa_handler == SIG_IGN) {
        if (info->si_code > 0)
            end_by_default(signum, info); /* a fault cannot be ignored */
    } else {
        previous[last].sa_handler(signum);
    }
    atomic_fetch_sub(&num_passing_on, 1);
}

static void on_sigbus(int signum, siginfo_t* info, void* context) {
    int saved_errno = errno;
    int is_ours = info->si_code > 0 && replace_page((uintptr_t)info->si_addr);
    errno = saved_errno;
    if (!is_ours)
        pass_on(signum, info, context);
}

static void arm_locked(void) {
    struct sigaction current;
    int count = atomic_load(&num_previous);
    if (sigaction(SIGBUS, NULL, &current) != 0 || count == MAX_PREVIOUS)
        return;
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_sigbus)
        return;
    previous[count] = current;
    atomic_store(&num_previous, count + 1);
    /* NODEFER: a handler we pass the signal on to may raise it again. */
    struct sigaction ours = {.sa_sigaction = on_sigbus,
                             .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, NULL);
}

void kandiga_map_guard_arm(void) {
    pthread_mutex_lock(&lock);
    arm_locked();
    pthread_mutex_unlock(&lock);
}

static struct kandiga_map_guard* unused_guard(void) {
    for (struct kandiga_map_guard* guard = atomic_load(&guards); guard; guard = guard->next)
        if (!guard->in_use)
            return guard;
    struct kandiga_map_guard* guard = calloc(1, sizeof *guard);
    if (!guard)
        return NULL;
    guard->next = atomic_load(&guards);
    atomic_store(&guards, guard);
    return guard;
}

struct kandiga_map_guard* kandiga_map_guard_new(const void* address, size_t length) {
    pthread_mutex_lock(&lock);
    page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    struct kandiga_map_guard* guard = unused_guard();
    if (guard) {
        guard->in_use = 1;
        atomic_store(&guard->fault, NO_FAULT);
        atomic_store(&guard->end, (uintptr_t)address + length);
        atomic_store(&guard->start, (uintptr_t)address); /* last: from here on it is seen */
        arm_locked();
    }
    pthread_mutex_unlock(&lock);
    return guard;
}

void kandiga_map_guard_drop(struct kandiga_map_guard* guard) {
    pthread_mutex_lock(&lock);
    atomic_store(&guard->start, 0);
    guard->in_use = 0;
    pthread_mutex_unlock(&lock);
}

ptrdiff_t kandiga_map_guard_fault(const struct kandiga_map_guard* guard) {
    uintptr_t fault = atomic_load(&guard->fault);
    return fault == NO_FAULT ? -1 : (ptrdiff_t)(fault - atomic_load(&guard->start));
}
