# Reading memory for the sake of how long it takes.

cdef extern from "read_memory.h" nogil:
    enum kandiga_read_order:
        pass
    enum:
        KANDIGA_NUM_READ_ORDERS
    uint64_t kandiga_read_ranges(const uint64_t* starts, const uint64_t* lengths,
                                 size_t num_ranges, kandiga_read_order order)

READ_ORDERS = tuple(range(KANDIGA_NUM_READ_ORDERS))


def read_memory(memory not None, int order=0):
    """Load every byte of a uint8 array once, on all threads; return the exclusive or of its words.

    The array begins at a multiple of 64. order: one of READ_ORDERS, the way through it.
    """
    import numpy
    cdef Buffers buffers = Buffers()
    cdef Py_buffer* view = buffers.get(memory, "memory", ("uint8",), 1, False)
    num_threads = kandiga_num_threads()
    share = view.len // num_threads // 2048 * 2048
    starts = numpy.arange(num_threads, dtype=numpy.uint64) * share + <size_t>view.buf
    return read_ranges(starts, numpy.full(num_threads, share, dtype=numpy.uint64), order)


def read_ranges(starts not None, lengths not None, int order=0):
    """Load every byte of ranges of memory once; return the exclusive or of their words.

    starts, lengths: (n,) uint64, addresses that are multiples of 64, and bytes, of which what
    follows the last whole 2 KiB is left out. Each range is one thread's. order: as above.
    """
    if not 0 <= order < KANDIGA_NUM_READ_ORDERS:
        raise ValueError(f"order: {order}, expected 0 to {KANDIGA_NUM_READ_ORDERS - 1}")
    cdef Buffers buffers = Buffers()
    cdef Py_buffer* first = buffers.get(starts, "starts", ("uint64",), 1, False)
    cdef Py_buffer* second = buffers.get(lengths, "lengths", ("uint64",), 1, False)
    if first.len != second.len:
        raise ValueError(f"lengths: {second.len // 8}, expected {first.len // 8}, one a start")
    cdef const uint64_t* addresses = <const uint64_t*>first.buf
    cdef const uint64_t* sizes = <const uint64_t*>second.buf
    cdef size_t i, num_ranges = <size_t>first.len // 8
    for i in range(num_ranges):
        if addresses[i] % 64:
            raise ValueError(f"memory: address {addresses[i]:#x}, expected a multiple of 64")
    cdef uint64_t words
    with nogil:
        words = kandiga_read_ranges(addresses, sizes, num_ranges, <kandiga_read_order>order)
    return words
