# The border: every array argument is checked here, once, before any C code sees its address.
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)

# Buffer format letters of each element type; which letter an integer has depends on the platform.
_FORMATS = {
    "float32": ("f", 4),
    "float16": ("e", 2),
    "uint16": ("H", 2),
    "int32": ("il", 4),
    "uint32": ("IL", 4),
    "uint64": ("QLK", 8),
    "uint8": ("B", 1),
}


cdef class Buffers:
    """The buffers of one call: of a checked element type, released with this object.

    Every method returns the view; its shape and buf are the array's.
    """

    cdef Py_buffer views[16]
    cdef int count

    def __dealloc__(self):
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])

    cdef Py_buffer* acquire(self, object array, str name, tuple types, int layout,
                            bint writable) except NULL:
        """View of an array of one of `types` (names as in numpy), of a layout (a PyBUF flag)."""
        if self.count == 16:
            raise ValueError(f"{name}: more than 16 arrays in one call")
        cdef Py_buffer* view = &self.views[self.count]
        if writable:
            layout |= PyBUF_WRITABLE
        try:
            PyObject_GetBuffer(array, view, PyBUF_FORMAT | layout)
        except (TypeError, BufferError, ValueError) as error:
            kind = "C-contiguous " if layout & ~PyBUF_STRIDES & PyBUF_C_CONTIGUOUS else ""
            kind = f"writable {kind}" if writable else kind
            raise ValueError(
                f"{name}: {_describe(array)}, expected a {kind}{' or '.join(types)} array: {error}"
            ) from None
        self.count += 1
        cdef const char* form = view.format
        if form != NULL and form[0] in b"@=<":
            form += 1
        cdef str letter = chr(form[0]) if form != NULL and form[0] and not form[1] else "B"
        for type_name in types:
            letters, itemsize = _FORMATS[type_name]
            if view.itemsize == itemsize and letter in <str>letters:
                break
        else:
            raise ValueError(f"{name}: {_describe(array)}, expected {' or '.join(types)}")
        if <size_t>view.buf % <size_t>view.itemsize:
            raise ValueError(
                f"{name}: address {<size_t>view.buf:#x}, expected a multiple of {view.itemsize}"
            )
        return view

    cdef Py_buffer* get(self, object array, str name, tuple types, int ndim,
                        bint writable) except NULL:
        """View of a C-contiguous array of one of `types` with ndim dimensions (-1: any)."""
        cdef Py_buffer* view = self.acquire(array, name, types, PyBUF_C_CONTIGUOUS, writable)
        if ndim >= 0 and view.ndim != ndim:
            raise ValueError(f"{name}: {_describe(array)}, expected {ndim} dimensions")
        return view

    cdef Py_buffer* strided(self, object array, str name, tuple types, bint writable) except NULL:
        """View of an array of one of `types` whose last axis is contiguous; the others may have any
        stride that is a multiple of the element."""
        cdef Py_buffer* view = self.acquire(array, name, types, PyBUF_STRIDES, writable)
        cdef int last = view.ndim - 1
        for i in range(view.ndim):
            if view.shape[i] <= 1:
                continue
            if i == last and view.strides[i] != view.itemsize:
                raise ValueError(
                    f"{name}: last axis has a stride of {view.strides[i]} bytes,"
                    f" expected {view.itemsize} (contiguous)"
                )
            if view.strides[i] % view.itemsize or (writable and view.strides[i] == 0):
                raise ValueError(
                    f"{name}: axis {i} has a stride of {view.strides[i]} bytes, expected a multiple"
                    f" of {view.itemsize}{' that is not 0' if writable else ''}"
                )
        return view

    cdef Py_buffer* f32(self, object array, str name, int ndim) except NULL:
        return self.get(array, name, ("float32",), ndim, False)

    cdef Py_buffer* f32_out(self, object array, str name, int ndim) except NULL:
        return self.get(array, name, ("float32",), ndim, True)

    cdef Py_buffer* i32(self, object array, str name, int ndim) except NULL:
        return self.get(array, name, ("int32",), ndim, False)

    cdef Py_buffer* i32_out(self, object array, str name, int ndim) except NULL:
        return self.get(array, name, ("int32",), ndim, True)


def _describe(array):
    """What was given, for an error message."""
    shape = getattr(array, "shape", None)
    dtype = getattr(array, "dtype", type(array).__name__)
    return f"{dtype} {tuple(shape)}" if shape is not None else str(dtype)


cdef int expect_shape(Py_buffer* view, str name, Py_ssize_t dim0, Py_ssize_t dim1=-1,
                      Py_ssize_t dim2=-1) except -1:
    """ValueError unless the view's shape is (dim0[, dim1[, dim2]]); those < 0 are not there."""
    cdef Py_ssize_t[3] wanted
    wanted[:] = [dim0, dim1, dim2]
    cdef bint same = True
    for i in range(3):
        if (view.shape[i] if i < view.ndim else -1) != wanted[i]:
            same = False
    if not same:
        seen = tuple(view.shape[i] for i in range(view.ndim))
        shape = tuple(wanted[i] for i in range(3) if wanted[i] >= 0)
        raise ValueError(f"{name}: shape {seen}, expected {shape}")
    return 0
