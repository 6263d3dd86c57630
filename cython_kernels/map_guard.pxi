cdef extern from "map_guard.h" nogil:
    struct kandiga_map_guard
    kandiga_map_guard* kandiga_map_guard_new(const void* address, size_t length)
    void kandiga_map_guard_drop(kandiga_map_guard* guard)
    Py_ssize_t kandiga_map_guard_fault(const kandiga_map_guard* guard)
    void kandiga_map_guard_arm()


cdef class MapGuard:
    """Keeps a mapped file that is cut short from ending the process, as SIGBUS does.

    A page that cannot be read is replaced by zeros and noted; check fault_offset_bytes after
    computing on the mapping and before using the results. Holds the mapping until it is closed.
    """

    cdef Py_buffer view
    cdef kandiga_map_guard* guard

    def __cinit__(self, mapping not None):
        PyObject_GetBuffer(mapping, &self.view, PyBUF_C_CONTIGUOUS)
        self.guard = kandiga_map_guard_new(self.view.buf, <size_t>self.view.len)
        if self.guard == NULL:
            PyBuffer_Release(&self.view)
            raise MemoryError

    def __dealloc__(self):
        self.close()

    @property
    def fault_offset_bytes(self):
        """Where in the mapping the first page that was replaced begins; None if all is well."""
        if self.guard == NULL:
            raise ValueError("the guard is closed")
        cdef Py_ssize_t offset = kandiga_map_guard_fault(self.guard)
        return None if offset < 0 else offset

    def close(self):
        """Let go of the mapping, which must not be computed on from here on."""
        if self.guard != NULL:
            kandiga_map_guard_drop(self.guard)
            self.guard = NULL
            PyBuffer_Release(&self.view)


def arm_map_guards():
    """See SIGBUS first again, if somebody has installed a handler since a guard was made."""
    kandiga_map_guard_arm()
