#include "time_split.h"
#include <string.h>
#include <time.h>

static _Thread_local struct {
    int64_t totals[KANDIGA_NUM_TIMES];
    int64_t since;
    enum kandiga_time label;
    int depth;
} own;

static int64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void count_until_now(void) {
    int64_t now = nanoseconds();
    own.totals[own.label] += now - own.since;
    own.since = now;
}

void kandiga_time_label(enum kandiga_time label) {
    if (own.depth > 0)
        count_until_now();
    own.label = label;
}

void kandiga_time_begin(void) {
    if (own.depth++ == 0)
        own.since = nanoseconds();
}

void kandiga_time_end(void) {
    if (--own.depth == 0)
        count_until_now();
}

void kandiga_time_totals(int64_t totals[KANDIGA_NUM_TIMES]) {
    memcpy(totals, own.totals, sizeof own.totals);
}
