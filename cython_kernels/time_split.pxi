# What kernels spend their time on, by what the caller says it does with them.

from libc.stdint cimport int64_t

cdef extern from "time_split.h" nogil:
    enum kandiga_time:
        KANDIGA_TIME_DENSE
        KANDIGA_TIME_ROUTING
        KANDIGA_TIME_EXPERTS
        KANDIGA_TIME_ATTENTION
        KANDIGA_TIME_GATED_DELTA
        KANDIGA_TIME_KV_CODING
    enum:
        KANDIGA_NUM_TIMES
    void kandiga_time_label(kandiga_time label)
    void kandiga_time_totals(int64_t* totals)

TIME_DENSE = <int>KANDIGA_TIME_DENSE
TIME_ROUTING = <int>KANDIGA_TIME_ROUTING
TIME_EXPERTS = <int>KANDIGA_TIME_EXPERTS
TIME_ATTENTION = <int>KANDIGA_TIME_ATTENTION
TIME_GATED_DELTA = <int>KANDIGA_TIME_GATED_DELTA
TIME_KV_CODING = <int>KANDIGA_TIME_KV_CODING


def label_time(int label):
    """Count the time in this thread's kernels under a TIME_ label from here on."""
    if not 0 <= label < KANDIGA_NUM_TIMES:
        raise ValueError(f"label: {label}, expected 0 to {KANDIGA_NUM_TIMES - 1}")
    kandiga_time_label(<kandiga_time>label)


def time_totals():
    """Return the nanoseconds in this thread's kernels so far, one number a TIME_ label."""
    cdef int64_t totals[KANDIGA_NUM_TIMES]
    cdef int i
    kandiga_time_totals(totals)
    return tuple([totals[i] for i in range(KANDIGA_NUM_TIMES)])
