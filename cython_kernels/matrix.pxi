# Quantized and plain matrices, the expert MLP. The kernels are csrc/matmul.c and csrc/expert.c.
from libc.stdint cimport int32_t, uint64_t, uintptr_t

cdef extern from "quant_ops.h" nogil:
    cdef enum kandiga_dtype:
        KANDIGA_F32
        KANDIGA_F16
        KANDIGA_BF16

    cdef enum kandiga_arithmetic:
        KANDIGA_EXACT
        KANDIGA_INT16
        KANDIGA_INT8

    cdef struct kandiga_matrix:
        const void* weight
        const void* scales
        const void* zeros
        const void* bias
        size_t out_features
        size_t in_features
        int bits
        int group_size
        kandiga_dtype dtype
        kandiga_dtype bias_dtype
        kandiga_arithmetic arithmetic

cdef extern from "matmul.h" nogil:
    enum:
        KANDIGA_MAX_MATRICES
    int kandiga_matmul_many(const kandiga_matrix* const* matrices, float* const* outs,
                            size_t num_matrices, const float* x, size_t num_tokens)
    void kandiga_embed_rows(const kandiga_matrix* w, const int32_t* ids, size_t num_ids,
                            float* out)

cdef extern from "expert.h" nogil:
    cdef struct kandiga_projection:
        kandiga_matrix matrix
        size_t weight_offset
        size_t scales_offset
        size_t zeros_offset
        size_t bias_offset
        int has_bias

    cdef struct kandiga_expert_layout:
        kandiga_projection gate
        kandiga_projection up
        kandiga_projection down

    size_t kandiga_expert_scratch_floats(const kandiga_expert_layout* layout, size_t num_rows)
    int kandiga_expert_mlp(const kandiga_expert_layout* layout, const uint64_t* addresses,
                           size_t num_experts, const int32_t* row_offsets, const int32_t* rows,
                           const float* x, size_t num_tokens, float* out, float* scratch)
    void kandiga_moe_combine(const float* expert_out, const float* scores, const int32_t* order,
                             size_t num_tokens, size_t top_k, size_t hidden_size, float* out)

_DTYPES = {"f32": KANDIGA_F32, "f16": KANDIGA_F16, "bf16": KANDIGA_BF16}
_ARITHMETIC = {"exact": KANDIGA_EXACT, "int16": KANDIGA_INT16, "int8": KANDIGA_INT8}
_ITEMSIZES = {"f32": 4, "f16": 2, "bf16": 2}
# Raw bytes are taken for every type: a slice of a mapped file is one.
_BUFFER_TYPES = {
    "f32": ("float32", "uint8"),
    "f16": ("float16", "uint8"),
    "bf16": ("uint16", "uint8"),
}
_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (32, 64, 128)


def _check_dtype(name, dtype):
    if dtype not in _DTYPES:
        raise ValueError(f"{name}: {dtype!r}, expected one of {', '.join(_DTYPES)}")


def _check_arithmetic(arithmetic):
    if arithmetic not in _ARITHMETIC:
        raise ValueError(
            f"arithmetic: {arithmetic!r}, expected one of {', '.join(_ARITHMETIC)}"
        )


def _check_quantization(name, in_features, bits, group_size):
    if bits not in _BITS:
        raise ValueError(f"{name}: {bits} bits, expected one of {_BITS}")
    if group_size not in _GROUP_SIZES:
        raise ValueError(f"{name}: group size {group_size}, expected one of {_GROUP_SIZES}")
    if in_features % group_size:
        raise ValueError(
            f"{name}: in_features {in_features}, expected a multiple of the group size {group_size}"
        )


def _check_features(name, out_features, in_features):
    if out_features < 1 or in_features < 1:
        raise ValueError(f"{name}: shape ({out_features}, {in_features}), expected at least (1, 1)")


cdef class Matrix:
    """A weight (out_features, in_features) for y = x W^T (+ bias), over the caller's own buffers.

    Made by Matrix.affine or Matrix.dense. Nothing is copied; the buffers are held as long as the
    matrix lives and must not change while a kernel runs.
    """

    cdef kandiga_matrix c
    cdef Buffers buffers
    cdef Buffers bias_buffers
    cdef readonly Py_ssize_t nbytes

    def __init__(self):
        raise TypeError("Matrix: use Matrix.affine or Matrix.dense")

    @property
    def out_features(self):
        return self.c.out_features

    @property
    def in_features(self):
        return self.c.in_features

    @property
    def extents(self):
        """(address, bytes) of weights, and of scales and biases if quantized."""
        cdef kandiga_matrix* c = &self.c
        if not c.bits:
            itemsize = 4 if c.dtype == KANDIGA_F32 else 2
            return ((<size_t>c.weight, c.out_features * c.in_features * itemsize),)
        groups_bytes = c.out_features * (c.in_features // <size_t>c.group_size) * (
            4 if c.dtype == KANDIGA_F32 else 2)
        return (
            (<size_t>c.weight, c.out_features * c.in_features * <size_t>c.bits // 8),
            (<size_t>c.scales, groups_bytes),
            (<size_t>c.zeros, groups_bytes),
        )

    @property
    def arithmetic(self):
        """How x takes part: "exact" in float32, "int16" or "int8" as integers."""
        return _arithmetic_name(self.c.arithmetic)

    @staticmethod
    def affine(weight, scales, biases, *, Py_ssize_t out_features, Py_ssize_t in_features,
               int bits, int group_size, str scale_dtype, bias=None, str arithmetic="exact"):
        """Affine quantized, MLX byte order: W = scales * code + biases in each group of columns.

        weight is (out_features, in_features * bits / 32) uint32; scales and biases are
        (out_features, in_features / group_size) float16, float32, or bfloat16 carried as uint16,
        as scale_dtype ("f16", "bf16", "f32") says; bias is (out_features,) float32. Each may also
        come as raw bytes (uint8) of the same length. arithmetic: "exact" multiplies x in float32;
        "int16" and "int8" round it to that many bits, with one step size for each group of columns,
        and multiply integers. Raises ValueError naming the argument.
        """
        _check_features("Matrix.affine", out_features, in_features)
        _check_quantization("Matrix.affine", in_features, bits, group_size)
        _check_dtype("scale_dtype", scale_dtype)
        _check_arithmetic(arithmetic)
        cdef Matrix self = _new_matrix(out_features, in_features, bias)
        self.c.bits = bits
        self.c.group_size = group_size
        self.c.dtype = _DTYPES[scale_dtype]
        self.c.arithmetic = _ARITHMETIC[arithmetic]
        groups_bytes = out_features * (in_features // group_size) * _ITEMSIZES[scale_dtype]
        weight_bytes = out_features * in_features * bits // 8
        self.c.weight = self.hold(weight, "weight", ("uint32", "uint8"), weight_bytes)
        self.c.scales = self.hold(scales, "scales", _BUFFER_TYPES[scale_dtype], groups_bytes)
        self.c.zeros = self.hold(biases, "biases", _BUFFER_TYPES[scale_dtype], groups_bytes)
        return self

    @staticmethod
    def dense(weight, *, Py_ssize_t out_features, Py_ssize_t in_features, str dtype, bias=None,
              str arithmetic="exact"):
        """Unquantized: weight is (out_features, in_features) of dtype "f16", "bf16" or "f32".

        bfloat16 is carried as uint16; raw bytes (uint8) are taken too; bias is (out_features,)
        float32. Computed exactly whatever the arithmetic: there are no codes. Raises ValueError
        naming the argument.
        """
        _check_features("Matrix.dense", out_features, in_features)
        _check_dtype("dtype", dtype)
        _check_arithmetic(arithmetic)
        cdef Matrix self = _new_matrix(out_features, in_features, bias)
        self.c.dtype = _DTYPES[dtype]
        weight_bytes = out_features * in_features * _ITEMSIZES[dtype]
        self.c.weight = self.hold(weight, "weight", _BUFFER_TYPES[dtype], weight_bytes)
        return self

    def move(self, weight, scales=None, biases=None):
        """Read from other buffers from here on, which hold the same bytes as those so far.

        Calls that were bound to this matrix follow. Not to be called while a kernel runs. Raises
        ValueError naming the argument.
        """
        dtype = next(name for name, value in _DTYPES.items() if value == self.c.dtype)
        cdef Buffers before = self.buffers
        cdef Py_ssize_t groups_bytes, weight_bytes, nbytes = self.nbytes
        cdef kandiga_matrix moved = self.c
        self.buffers = Buffers()
        try:
            if self.c.bits:
                groups_bytes = (self.c.out_features * (self.c.in_features // self.c.group_size)
                                * _ITEMSIZES[dtype])
                weight_bytes = self.c.out_features * self.c.in_features * self.c.bits // 8
                moved.weight = self.hold(weight, "weight", ("uint32", "uint8"), weight_bytes)
                moved.scales = self.hold(scales, "scales", _BUFFER_TYPES[dtype], groups_bytes)
                moved.zeros = self.hold(biases, "biases", _BUFFER_TYPES[dtype], groups_bytes)
            else:
                weight_bytes = self.c.out_features * self.c.in_features * _ITEMSIZES[dtype]
                moved.weight = self.hold(weight, "weight", _BUFFER_TYPES[dtype], weight_bytes)
        except BaseException:
            self.buffers = before
            raise
        finally:
            self.nbytes = nbytes
        self.c = moved

    cdef const void* hold(self, object array, str name, tuple types, Py_ssize_t nbytes) except NULL:
        cdef Py_buffer* view = self.buffers.get(array, name, types, -1, False)
        if view.len != nbytes:
            raise ValueError(
                f"{name}: {view.len} bytes, expected {nbytes} for"
                f" ({self.c.out_features}, {self.c.in_features})"
            )
        # Raw bytes may begin anywhere, numbers of 2 and 4 bytes may not.
        cdef Py_ssize_t itemsize = _FORMATS[types[0]][1]
        if <size_t>view.buf % <size_t>itemsize:
            raise ValueError(
                f"{name}: address {<size_t>view.buf:#x}, expected a multiple of {itemsize}"
            )
        self.nbytes += nbytes
        return view.buf


def _arithmetic_name(int arithmetic):
    return next(name for name, value in _ARITHMETIC.items() if value == arithmetic)


cdef Matrix _new_matrix(Py_ssize_t out_features, Py_ssize_t in_features, object bias):
    cdef Matrix matrix = Matrix.__new__(Matrix)
    matrix.buffers = Buffers()
    matrix.c.out_features = out_features
    matrix.c.in_features = in_features
    if bias is not None:
        matrix.c.bias = matrix.hold(bias, "bias", ("float32",), out_features * 4)
    matrix.bias_buffers, matrix.buffers = matrix.buffers, Buffers()
    return matrix


def matmul(Matrix matrix not None, x, out):
    """out (T, out_features) = x (T, in_features) W^T + bias, float32."""
    matmul_many((matrix,), x, (out,))


def matmul_many(matrices, x, outs):
    """outs[i] (T, out_features) = x (T, in_features) W_i^T + bias_i, float32; up to 15 matrices.

    One parallel region for all of them: q, k and v of a small model do not fill a machine alone.
    """
    cdef Py_ssize_t num_matrices = len(matrices)
    if num_matrices != len(outs):
        raise ValueError(f"outs: {len(outs)} arrays, expected {num_matrices}, one for each matrix")
    if num_matrices >= KANDIGA_MAX_MATRICES:
        raise ValueError(f"matrices: {num_matrices}, expected at most {KANDIGA_MAX_MATRICES - 1}")
    cdef const kandiga_matrix* c_matrices[KANDIGA_MAX_MATRICES]
    cdef float* c_outs[KANDIGA_MAX_MATRICES]
    cdef Buffers held = Buffers()
    cdef Py_buffer* x_view = held.f32(x, "x", 2)
    cdef Py_buffer* view
    cdef Matrix matrix
    cdef Py_ssize_t i
    for i in range(num_matrices):
        matrix = matrices[i]
        if <size_t>x_view.shape[1] != matrix.c.in_features:
            raise ValueError(
                f"x: {x_view.shape[1]} columns, expected {matrix.c.in_features}, the matrix's"
            )
        view = held.f32_out(outs[i], "out", 2)
        expect_shape(view, "out", x_view.shape[0], matrix.c.out_features)
        c_matrices[i] = &matrix.c
        c_outs[i] = <float*>view.buf
    cdef int status
    with nogil:
        status = kandiga_matmul_many(c_matrices, c_outs, num_matrices, <const float*>x_view.buf,
                                     x_view.shape[0])
    if status:
        raise MemoryError("matmul: no memory for scratch")


def embed_rows(Matrix matrix not None, ids, out):
    """out (T, in_features) float32 = rows ids (T,) int32 of the matrix, dequantized."""
    cdef Buffers held = Buffers()
    cdef Py_buffer* ids_view = held.i32(ids, "ids", 1)
    cdef Py_buffer* out_view = held.f32_out(out, "out", 2)
    cdef Py_ssize_t num_ids = ids_view.shape[0]
    expect_shape(out_view, "out", num_ids, matrix.c.in_features)
    cdef const int32_t* c_ids = <const int32_t*>ids_view.buf
    _check_indices("ids", c_ids, num_ids, matrix.c.out_features)
    with nogil:
        kandiga_embed_rows(&matrix.c, c_ids, num_ids, <float*>out_view.buf)


cdef int _check_indices(str name, const int32_t* indices, Py_ssize_t count,
                        Py_ssize_t limit) except -1:
    cdef Py_ssize_t i
    for i in range(count):
        if indices[i] < 0 or indices[i] >= limit:
            raise ValueError(f"{name}[{i}]: {indices[i]}, expected 0 <= index < {limit}")
    return 0


cdef class ExpertLayout:
    """Where the parts of an expert lie in its block, for y = down(silu(gate(x)) * up(x)).

    parts maps (projection, role) to a dict of offset_bytes, dtype, shape, bits, group_size and
    mode; projection is "gate", "up" or "down", role "weight", "scales", "biases" or "bias"; mode
    is "affine" (weight u32, scales and biases of one dtype f16, bf16 or f32) or "none" (weight
    f16, bf16 or f32). gate and up are (moe_intermediate_size, hidden_size), down the other way
    round. arithmetic: as for Matrix.affine, of the affine projections. Raises ValueError naming the
    part when it is anything else.
    """

    cdef kandiga_expert_layout c
    cdef readonly Py_ssize_t hidden_size
    cdef readonly Py_ssize_t moe_intermediate_size
    # Bytes of a block that the kernel may read: the end of the last part.
    cdef readonly Py_ssize_t payload_bytes
    cdef readonly str arithmetic

    def __init__(self, parts, *, Py_ssize_t hidden_size, Py_ssize_t moe_intermediate_size,
                 str arithmetic="exact"):
        _check_features("ExpertLayout", moe_intermediate_size, hidden_size)
        _check_arithmetic(arithmetic)
        parts = dict(parts)
        self.arithmetic = arithmetic
        self.hidden_size = hidden_size
        self.moe_intermediate_size = moe_intermediate_size
        for projection, role in parts:
            if projection not in ("gate", "up", "down"):
                raise ValueError(f"{projection} {role}: expected projections gate, up and down")
            if role not in ("weight", "scales", "biases", "bias"):
                raise ValueError(
                    f"{projection} {role}: expected weight, scales, biases and bias only"
                )
        self.fill(&self.c.gate, parts, "gate", moe_intermediate_size, hidden_size)
        self.fill(&self.c.up, parts, "up", moe_intermediate_size, hidden_size)
        self.fill(&self.c.down, parts, "down", hidden_size, moe_intermediate_size)

    cdef int fill(self, kandiga_projection* p, dict parts, str projection,
                  Py_ssize_t out_features, Py_ssize_t in_features) except -1:
        weight = parts.get((projection, "weight"))
        if weight is None:
            raise ValueError(f"{projection} weight: missing")
        p.matrix.out_features = out_features
        p.matrix.in_features = in_features
        mode = weight["mode"]
        if mode == "affine":
            bits, group_size = weight["bits"], weight["group_size"]
            _check_quantization(f"{projection} weight", in_features, bits, group_size)
            scales = parts.get((projection, "scales"))
            if scales is None or scales["dtype"] not in _DTYPES:
                raise ValueError(
                    f"{projection} scales: {scales and scales['dtype']}, expected f16, bf16 or f32"
                )
            p.matrix.bits = bits
            p.matrix.group_size = group_size
            p.matrix.dtype = _DTYPES[scales["dtype"]]
            p.matrix.arithmetic = _ARITHMETIC[self.arithmetic]
            groups = (out_features, in_features // group_size)
            words = (out_features, in_features * bits // 32)
            p.weight_offset = self.offset(parts, projection, "weight", "u32", words)
            p.scales_offset = self.offset(parts, projection, "scales", scales["dtype"], groups)
            p.zeros_offset = self.offset(parts, projection, "biases", scales["dtype"], groups)
        elif mode == "none":
            _check_dtype(f"{projection} weight", weight["dtype"])
            p.matrix.dtype = _DTYPES[weight["dtype"]]
            shape = (out_features, in_features)
            p.weight_offset = self.offset(parts, projection, "weight", weight["dtype"], shape)
        else:
            raise ValueError(f"{projection} weight: mode {mode!r}, expected 'affine' or 'none'")
        bias = parts.get((projection, "bias"))
        if bias is not None:
            _check_dtype(f"{projection} bias", bias["dtype"])
            p.has_bias = 1
            p.matrix.bias_dtype = _DTYPES[bias["dtype"]]
            p.bias_offset = self.offset(parts, projection, "bias", bias["dtype"], (out_features,))
        return 0

    cdef Py_ssize_t offset(self, dict parts, str projection, str role, str dtype,
                           tuple shape) except -1:
        part = parts.get((projection, role))
        if part is None:
            raise ValueError(f"{projection} {role}: missing")
        if part["dtype"] != dtype or tuple(part["shape"]) != shape:
            raise ValueError(
                f"{projection} {role}: {part['dtype']} {tuple(part['shape'])},"
                f" expected {dtype} {shape}"
            )
        cdef Py_ssize_t itemsize = 4 if dtype == "u32" else _ITEMSIZES[dtype]
        cdef Py_ssize_t offset_bytes = part["offset_bytes"]
        if offset_bytes < 0 or offset_bytes % itemsize:
            raise ValueError(
                f"{projection} {role}: offset {offset_bytes}, expected a multiple of {itemsize}"
            )
        cdef Py_ssize_t length_bytes = itemsize
        for dim in shape:
            length_bytes *= dim
        self.payload_bytes = max(self.payload_bytes, offset_bytes + length_bytes)
        return offset_bytes


def expert_scratch(ExpertLayout layout not None, Py_ssize_t max_rows):
    """float32 scratch for expert_mlp calls of up to max_rows rows; some megabytes at most."""
    import numpy

    if max_rows < 1:
        raise ValueError(f"max_rows: {max_rows}, expected at least 1")
    return numpy.empty(kandiga_expert_scratch_floats(&layout.c, max_rows), dtype=numpy.float32)


def expert_mlp(ExpertLayout layout not None, addresses, row_offsets, rows, x, out, scratch):
    """out (R, hidden_size) = the experts' MLPs of chosen rows of x (T, hidden_size), float32.

    The expert whose block starts at addresses[j] (n, uint64) serves tokens rows[r] (R, int32) for
    row_offsets[j] <= r < row_offsets[j + 1] (n + 1, int32, from 0 to R ascending), and its result
    for each goes to out[r]. Every block must hold layout.payload_bytes readable bytes. scratch is
    expert_scratch(layout, R) or larger.
    """
    cdef Buffers held = Buffers()
    cdef Py_buffer* addresses_view = held.get(addresses, "addresses", ("uint64",), 1, False)
    cdef Py_buffer* offsets_view = held.i32(row_offsets, "row_offsets", 1)
    cdef Py_buffer* rows_view = held.i32(rows, "rows", 1)
    cdef Py_buffer* x_view = held.f32(x, "x", 2)
    cdef Py_buffer* out_view = held.f32_out(out, "out", 2)
    cdef Py_buffer* scratch_view = held.f32_out(scratch, "scratch", 1)
    cdef Py_ssize_t num_experts = addresses_view.shape[0]
    cdef Py_ssize_t num_rows = rows_view.shape[0]
    cdef Py_ssize_t num_tokens = x_view.shape[0]
    expect_shape(offsets_view, "row_offsets", num_experts + 1)
    expect_shape(x_view, "x", num_tokens, layout.hidden_size)
    expect_shape(out_view, "out", num_rows, layout.hidden_size)
    cdef const int32_t* offsets = <const int32_t*>offsets_view.buf
    cdef Py_ssize_t j
    if offsets[0] != 0 or offsets[num_experts] != num_rows:
        raise ValueError(
            f"row_offsets: from {offsets[0]} to {offsets[num_experts]}, expected 0 to {num_rows}"
        )
    for j in range(num_experts):
        if offsets[j] > offsets[j + 1]:
            raise ValueError(
                f"row_offsets[{j + 1}]: {offsets[j + 1]}, expected at least {offsets[j]}"
            )
    _check_indices("rows", <const int32_t*>rows_view.buf, num_rows, num_tokens)
    cdef Py_ssize_t wanted = kandiga_expert_scratch_floats(&layout.c, num_rows)
    if scratch_view.shape[0] < wanted:
        raise ValueError(
            f"scratch: {scratch_view.shape[0]} floats, expected at least {wanted}"
            f" (expert_scratch(layout, {num_rows}))"
        )
    cdef int status
    with nogil:
        status = kandiga_expert_mlp(
            &layout.c, <const uint64_t*>addresses_view.buf, num_experts, offsets,
            <const int32_t*>rows_view.buf, <const float*>x_view.buf, num_tokens,
            <float*>out_view.buf, <float*>scratch_view.buf,
        )
    if status:
        raise MemoryError("expert_mlp: no memory for scratch")


def moe_combine(expert_out, scores, order, out):
    """out[t] += sum over k of scores[t, k] * expert_out[order[t * K + k]], k ascending.

    expert_out (R, hidden), scores (T, K) and out (T, hidden) float32, order (T * K,) int32. The
    order of the sum is fixed, so the result does not depend on the order experts arrived in.
    """
    cdef Buffers held = Buffers()
    cdef Py_buffer* expert_view = held.f32(expert_out, "expert_out", 2)
    cdef Py_buffer* scores_view = held.f32(scores, "scores", 2)
    cdef Py_buffer* order_view = held.i32(order, "order", 1)
    cdef Py_buffer* out_view = held.f32_out(out, "out", 2)
    cdef Py_ssize_t num_tokens = scores_view.shape[0]
    cdef Py_ssize_t top_k = scores_view.shape[1]
    expect_shape(order_view, "order", num_tokens * top_k)
    expect_shape(out_view, "out", num_tokens, expert_view.shape[1])
    _check_indices("order", <const int32_t*>order_view.buf, num_tokens * top_k,
                   expert_view.shape[0])
    with nogil:
        kandiga_moe_combine(<const float*>expert_view.buf, <const float*>scores_view.buf,
                            <const int32_t*>order_view.buf, num_tokens, top_k,
                            expert_view.shape[1], <float*>out_view.buf)
