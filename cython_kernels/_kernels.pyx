# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False
import os

cdef extern from "cpu.h" nogil:
    enum:
        KANDIGA_NUM_ISAS
    const char* kandiga_isa_name(int isa)
    int kandiga_isa_available(int isa)
    int kandiga_cpu_count()

cdef extern from "dispatch.h" nogil:
    void kandiga_select_isa(int isa)
    int kandiga_selected_isa()
    int kandiga_best_isa()
    int kandiga_rows_as_alone

cdef extern from "threadpool.h" nogil:
    int kandiga_num_threads()
    void kandiga_set_num_threads(int num_threads)
    void kandiga_pool_hold()
    void kandiga_pool_release()

include "buffers.pxi"
include "matrix.pxi"
include "vector.pxi"
include "turboquant.pxi"
include "map_guard.pxi"
include "block_reader.pxi"
include "time_split.pxi"
include "bound.pxi"
include "read_memory.pxi"


def cpu_count():
    """Return the number of logical processors this process may run on."""
    return kandiga_cpu_count()


def num_threads():
    """Return how many threads work on a kernel, the calling one included."""
    return kandiga_num_threads()


def set_num_threads(int count):
    """Let count >= 1 threads work on each kernel from the next call on."""
    if count < 1:
        raise ValueError(f"num_threads: {count}, expected at least 1")
    with nogil:
        kandiga_set_num_threads(count)


def set_rows_as_alone(bint on):
    """Whether each row of a matmul or an expert is, bit for bit, what it is when it comes alone.

    On while sequences are decoded together: slower from four rows on, where a matrix unit would
    take over. Not to be changed while another thread computes.
    """
    global kandiga_rows_as_alone
    kandiga_rows_as_alone = on


def isa():
    """Return the name of the instruction set in use."""
    return kandiga_isa_name(kandiga_selected_isa()).decode()


def available_isas():
    """Return the names of the instruction sets that run here, slowest first."""
    return tuple(
        kandiga_isa_name(i).decode() for i in range(KANDIGA_NUM_ISAS) if kandiga_isa_available(i)
    )


def _force_isa(str name not None):
    """Use an instruction set from now on; ValueError when it cannot run here."""
    for i in range(KANDIGA_NUM_ISAS):
        if kandiga_isa_name(i).decode() == name and kandiga_isa_available(i):
            with nogil:
                kandiga_pool_hold()
                kandiga_select_isa(i)
                kandiga_pool_release()
            return
    raise ValueError(f"{name!r} cannot run here; available: {', '.join(available_isas())}")


kandiga_select_isa(kandiga_best_isa())
if os.environ.get("KANDIGA_ISA"):
    try:
        _force_isa(os.environ["KANDIGA_ISA"])
    except ValueError as error:
        raise ImportError(f"KANDIGA_ISA: {error}") from None
