# cython: language_level=3
cdef extern from "cpu.h" nogil:
    int kandiga_cpu_count()


def cpu_count() -> int:
    """Return the number of logical processors this process may run on."""
    return kandiga_cpu_count()
