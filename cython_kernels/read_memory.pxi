# Reading memory for the sake of how long it takes.

cdef extern from "read_memory.h" nogil:
    enum kandiga_read_order:
        pass
    enum:
        KANDIGA_NUM_READ_ORDERS
    uint64_t kandiga_read_memory(const void* start, size_t num_bytes, kandiga_read_order order)

READ_ORDERS = tuple(range(KANDIGA_NUM_READ_ORDERS))


def read_memory(memory not None, int order=0):
    """Load every byte of a uint8 array once, on all threads; return the exclusive or of its words.

    The array begins at a multiple of 64. order: one of READ_ORDERS, the way through it.
    """
    if not 0 <= order < KANDIGA_NUM_READ_ORDERS:
        raise ValueError(f"order: {order}, expected 0 to {KANDIGA_NUM_READ_ORDERS - 1}")
    cdef Buffers buffers = Buffers()
    cdef Py_buffer* view = buffers.get(memory, "memory", ("uint8",), 1, False)
    if <size_t>view.buf % 64:
        raise ValueError(f"memory: address {<size_t>view.buf:#x}, expected a multiple of 64")
    cdef const void* start = view.buf
    cdef size_t num_bytes = <size_t>view.len
    cdef uint64_t words
    with nogil:
        words = kandiga_read_memory(start, num_bytes, <kandiga_read_order>order)
    return words
