#define _GNU_SOURCE
#include "cpu.h"
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

int kandiga_cpu_count(void) {
#ifdef __linux__
    /* Affinity, not the machine: containers and taskset hand out fewer cores than exist. */
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}
