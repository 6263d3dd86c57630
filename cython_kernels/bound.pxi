# Kernels bound to the arrays they work on.
#
# A decode token calls some hundred kernels on the same arrays as the token before. These classes
# look at their arguments once, when they are made, with room for `max_tokens` tokens; a call then
# costs about 0.1 us and works on the first num_tokens rows of each. The arrays are held as long as
# the object lives.


cdef class Bound:
    """A kernel and its arrays; max_tokens is how many tokens they have room for."""

    cdef Buffers held
    cdef readonly Py_ssize_t max_tokens

    def __cinit__(self):
        self.held = Buffers()

    def __call__(self, Py_ssize_t num_tokens):
        self.expect_tokens(num_tokens)
        self.run(num_tokens)

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        """Work on the first num_tokens <= max_tokens rows; without the interpreter's lock."""
        raise TypeError(f"{type(self).__name__} needs more than the number of tokens")

    cdef int expect_tokens(self, Py_ssize_t num_tokens) except -1:
        if not 0 <= num_tokens <= self.max_tokens:
            raise ValueError(f"num_tokens: {num_tokens}, expected 0 to {self.max_tokens}")
        return 0

    cdef int bind_rows(self, object array, str name, bint writable, View* view,
                       Py_ssize_t width) except -1:
        """A float32 array (max_tokens, width)."""
        take_rows(self.held, array, name, writable, view, 2)
        if <Py_ssize_t>view.r.n0 != self.max_tokens or <Py_ssize_t>view.r.width != width:
            raise ValueError(
                f"{name}: shape {view_shape(view)}, expected {(self.max_tokens, width)}"
            )
        return 0


cdef class Projections(Bound):
    """outs[i] = x W_i^T + bias_i for up to 15 matrices in one parallel region, as matmul_many.

    x (max_tokens, in_features) and outs[i] (max_tokens, out_features) are C-contiguous float32.
    """

    cdef const kandiga_matrix* matrices[KANDIGA_MAX_MATRICES]
    cdef float* outs[KANDIGA_MAX_MATRICES]
    cdef Py_ssize_t num_matrices
    cdef const float* x
    cdef tuple kept

    def __init__(self, matrices, x, outs):
        cdef Py_buffer* view = self.held.f32(x, "x", 2)
        cdef Matrix matrix
        self.kept = tuple(matrices)
        self.num_matrices = len(self.kept)
        if self.num_matrices != len(outs):
            raise ValueError(f"outs: {len(outs)} arrays, expected {self.num_matrices}")
        if not 1 <= self.num_matrices < KANDIGA_MAX_MATRICES:
            raise ValueError(
                f"matrices: {self.num_matrices}, expected 1 to {KANDIGA_MAX_MATRICES - 1}"
            )
        self.x = <const float*>view.buf
        self.max_tokens = view.shape[0]
        cdef Py_ssize_t in_features = view.shape[1]
        for i in range(self.num_matrices):
            matrix = self.kept[i]
            if <Py_ssize_t>matrix.c.in_features != in_features:
                raise ValueError(
                    f"x: {in_features} columns, expected {matrix.c.in_features}, the matrix's"
                )
            view = self.held.f32_out(outs[i], f"outs[{i}]", 2)
            expect_shape(view, f"outs[{i}]", self.max_tokens, matrix.c.out_features)
            self.matrices[i] = &matrix.c
            self.outs[i] = <float*>view.buf

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        cdef int status
        with nogil:
            status = kandiga_matmul_many(self.matrices, self.outs, self.num_matrices, self.x,
                                         num_tokens)
        if status:
            raise MemoryError("matmul: no memory for scratch")
        return 0


cdef class GatedDeltaHeads(Bound):
    """A gated delta layer between its projections, over all tokens in order.

    Convolve qkv; normalize queries (then times Dk**-0.5) and keys; walk the gated delta rule with
    decay and step from a and b; out = rms_norm of that * silu(z). Hk key heads of dimension Dk, Hv
    value heads of dimension Dv; C = 2 * Hk * Dk + Hv * Dv channels. T is max_tokens.

    qkv (T, C), z and out (T, Hv * Dv), a and b (T, Hv); conv_weight (taps, C), a_log and dt_bias
    (Hv,), norm_weight (Dv,); all float32. Each call takes the states, which it updates: conv_state
    (taps - 1, C), state (Hv, Dv, Dk).

    From a dozen tokens on they are taken in chunks, which rounds differently: the result depends
    on how a sequence is cut by some units in the last place.
    """

    cdef gated_delta_heads_args c
    cdef View out

    def __init__(self, qkv, z, a, b, out, *, conv_weight, a_log, dt_bias, norm_weight,
                 Py_ssize_t num_key_heads, float norm_eps, float normalize_eps):
        cdef View view
        cdef Py_buffer* weight = self.held.f32(conv_weight, "conv_weight", 2)
        cdef Py_buffer* norm = self.held.f32(norm_weight, "norm_weight", 1)
        take_rows(self.held, a, "a", False, &view, 2)
        self.max_tokens = view.r.n0
        cdef Py_ssize_t heads = view.r.width
        cdef Py_ssize_t channels = weight.shape[1]
        cdef Py_ssize_t key_channels = channels - heads * norm.shape[0]
        if num_key_heads < 1 or heads % num_key_heads:
            raise ValueError(
                f"num_key_heads: {num_key_heads}, expected a divisor of the {heads} heads of a"
            )
        if key_channels <= 0 or key_channels % (2 * num_key_heads) or weight.shape[0] < 1:
            raise ValueError(
                f"conv_weight: {_describe(conv_weight)}, expected (taps, channels) with"
                f" {2 * num_key_heads} heads of keys and queries and {heads} of {norm.shape[0]}"
            )
        self.c.a, self.c.a_token_stride = view.r.data, view.r.stride0
        self.bind_rows(b, "b", False, &view, heads)
        self.c.b, self.c.b_token_stride = view.r.data, view.r.stride0
        self.bind_rows(qkv, "qkv", False, &view, channels)
        self.c.qkv, self.c.qkv_token_stride = view.r.data, view.r.stride0
        self.bind_rows(z, "z", False, &view, heads * norm.shape[0])
        self.c.z, self.c.z_token_stride = view.r.data, view.r.stride0
        self.bind_rows(out, "out", True, &self.out, heads * norm.shape[0])
        self.out.r.n1 = heads
        self.out.r.width = self.out.r.stride1 = norm.shape[0]
        self.c.conv_weight, self.c.conv_taps = <const float*>weight.buf, weight.shape[0]
        self.c.norm_weight, self.c.value_dim = <const float*>norm.buf, norm.shape[0]
        self.c.a_log = take_vector(self.held, a_log, "a_log", heads)
        self.c.dt_bias = take_vector(self.held, dt_bias, "dt_bias", heads)
        self.c.num_key_heads, self.c.num_value_heads = num_key_heads, heads
        self.c.key_dim = key_channels // (2 * num_key_heads)
        self.c.norm_eps, self.c.normalize_eps = norm_eps, normalize_eps

    def __call__(self, Py_ssize_t num_tokens, conv_state, state):
        self.expect_tokens(num_tokens)
        cdef Buffers states = Buffers()
        cdef Py_buffer* conv = states.f32_out(conv_state, "conv_state", 2)
        cdef Py_buffer* delta = states.f32_out(state, "state", 3)
        expect_shape(conv, "conv_state", self.c.conv_taps - 1,
                     2 * self.c.num_key_heads * self.c.key_dim
                     + self.c.num_value_heads * self.c.value_dim)
        expect_shape(delta, "state", self.c.num_value_heads, self.c.value_dim, self.c.key_dim)
        cdef gated_delta_heads_args args = self.c
        args.conv_state, args.state = <float*>conv.buf, <float*>delta.buf
        args.num_tokens = num_tokens
        cdef int status
        with nogil:
            kandiga_time_label(KANDIGA_TIME_GATED_DELTA)
            status = vector_gated_delta_heads(&args, &self.out.r)
            kandiga_time_label(KANDIGA_TIME_DENSE)
        if status:
            raise MemoryError("gated delta: no memory for scratch")


cdef class AddRmsNorm(Bound):
    """x += delta in place, then out = rms_norm(x) * weight; all (max_tokens, H), weight (H,)."""

    cdef View x, delta, out
    cdef const float* weight
    cdef float eps

    def __init__(self, x, delta, weight, float eps, out):
        take_rows(self.held, x, "x", True, &self.x, 2)
        self.max_tokens = self.x.r.n0
        self.bind_rows(delta, "delta", False, &self.delta, self.x.r.width)
        self.bind_rows(out, "out", True, &self.out, self.x.r.width)
        self.weight = take_vector(self.held, weight, "weight", self.x.r.width)
        self.eps = eps

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        cdef rows x = self.x.r
        x.n0 = num_tokens
        with nogil:
            vector_add_rms_norm(&x, &self.delta.r, self.weight, self.eps, &self.out.r)
        return 0


cdef class SiluMul(Bound):
    """out = silu(gate) * up; all (max_tokens, width); out may be either."""

    cdef View gate, up, out

    def __init__(self, gate, up, out):
        take_rows(self.held, gate, "gate", False, &self.gate, 2)
        self.max_tokens = self.gate.r.n0
        self.bind_rows(up, "up", False, &self.up, self.gate.r.width)
        self.bind_rows(out, "out", True, &self.out, self.gate.r.width)

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        cdef rows gate = self.gate.r
        gate.n0 = num_tokens
        with nogil:
            vector_silu_mul(&gate, &self.up.r, &self.out.r)
        return 0


cdef class TopKRouting(Bound):
    """Select the best experts of logits (max_tokens, E) into indices and scores (max_tokens, K).

    As top_k_routing, which says what the modes are.
    """

    cdef View logits
    cdef Py_ssize_t top_k
    cdef score_mode mode
    cdef int32_t* indices
    cdef float* scores

    def __init__(self, logits, str mode, indices, scores):
        take_rows(self.held, logits, "logits", False, &self.logits, 2)
        self.max_tokens = self.logits.r.n0
        cdef Py_buffer* view = self.held.i32_out(indices, "indices", 2)
        self.top_k = view.shape[1]
        expect_shape(view, "indices", self.max_tokens, self.top_k)
        if not 1 <= self.top_k <= <Py_ssize_t>self.logits.r.width:
            raise ValueError(
                f"indices: {self.top_k} columns, expected 1 to {self.logits.r.width} (experts)"
            )
        if mode not in SCORE_MODES:
            raise ValueError(f"mode: {mode!r}, expected one of {', '.join(SCORE_MODES)}")
        self.mode = SCORE_MODES[mode]
        self.indices = <int32_t*>view.buf
        view = self.held.f32_out(scores, "scores", 2)
        expect_shape(view, "scores", self.max_tokens, self.top_k)
        self.scores = <float*>view.buf

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        cdef rows logits = self.logits.r
        logits.n0 = num_tokens
        with nogil:
            vector_top_k(&logits, self.top_k, self.mode, self.indices, self.scores)
        return 0


cdef class RotatedHeads(Bound):
    """RMS norm of every head of queries and keys, unless the norms are None, then rope; in place.

    queries (max_tokens, Hq, D) and keys (max_tokens, Hkv, D); norms (D,) each; inv_freq and the
    options as rope takes them.
    """

    cdef View queries, keys, frequencies
    cdef const float* query_norm
    cdef const float* key_norm
    cdef float eps, scale
    cdef bint traditional

    def __init__(self, queries, keys, inv_freq, *, query_norm=None, key_norm=None, float eps=0.0,
                 bint traditional=False, float scale=1.0):
        take_rows(self.held, queries, "queries", True, &self.queries, 3)
        take_rows(self.held, keys, "keys", True, &self.keys, 3)
        take_rows(self.held, inv_freq, "inv_freq", False, &self.frequencies, 1)
        self.max_tokens = self.queries.r.n0
        cdef Py_ssize_t head_dim = self.queries.r.width
        if <Py_ssize_t>self.keys.r.n0 != self.max_tokens or self.keys.r.width != <size_t>head_dim:
            raise ValueError(
                f"keys: shape {view_shape(&self.keys)}, expected"
                f" {(self.max_tokens, self.keys.r.n1, head_dim)}"
            )
        if 2 * self.frequencies.r.width > <size_t>head_dim:
            raise ValueError(
                f"inv_freq: {self.frequencies.r.width} pairs, expected at most {head_dim // 2}"
            )
        if self.frequencies.r.width > ROPE_MAX_PAIRS:
            raise ValueError(
                f"inv_freq: {self.frequencies.r.width} pairs, expected at most {ROPE_MAX_PAIRS}"
            )
        if (query_norm is None) != (key_norm is None):
            raise ValueError("key_norm: expected with query_norm, or neither")
        if query_norm is not None:
            self.query_norm = take_vector(self.held, query_norm, "query_norm", head_dim)
            self.key_norm = take_vector(self.held, key_norm, "key_norm", head_dim)
        self.eps, self.traditional, self.scale = eps, traditional, scale

    def __call__(self, Py_ssize_t num_tokens, int64_t position):
        self.expect_tokens(num_tokens)
        if position < 0:
            raise ValueError(f"position: {position}, expected 0 or more")
        cdef rows queries = self.queries.r
        cdef rows keys = self.keys.r
        cdef const float* frequencies = self.frequencies.r.data
        cdef size_t pairs = self.frequencies.r.width
        queries.n0 = keys.n0 = num_tokens
        with nogil:
            if self.query_norm != NULL:
                vector_rms_norm(&queries, self.query_norm, self.eps, &queries)
                vector_rms_norm(&keys, self.key_norm, self.eps, &keys)
            vector_rope(&queries, frequencies, pairs, position, self.traditional, self.scale)
            vector_rope(&keys, frequencies, pairs, position, self.traditional, self.scale)


cdef class SplitInterleaved(Bound):
    """Copy slices of the last axis of x (max_tokens, n, W) to outs[i] (max_tokens, n, w_i)."""

    cdef View x
    cdef View[8] parts
    cdef int num_parts

    def __init__(self, x, outs):
        cdef size_t width = 0
        self.num_parts = len(outs)
        if not 1 <= self.num_parts <= 8:
            raise ValueError(f"outs: {self.num_parts} arrays, expected 1 to 8")
        take_rows(self.held, x, "x", False, &self.x, 3)
        self.max_tokens = self.x.r.n0
        for i in range(self.num_parts):
            take_rows(self.held, outs[i], f"outs[{i}]", True, &self.parts[i], 3)
            if self.parts[i].r.n0 != self.x.r.n0 or self.parts[i].r.n1 != self.x.r.n1:
                raise ValueError(
                    f"outs[{i}]: shape {view_shape(&self.parts[i])}, expected the first two axes"
                    f" of x, {view_shape(&self.x)}"
                )
            width += self.parts[i].r.width
        if width != self.x.r.width:
            raise ValueError(
                f"outs: widths add up to {width}, expected {self.x.r.width} (last axis of x)"
            )

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        cdef rows part = self.x.r
        cdef int i
        part.n0 = num_tokens
        with nogil:
            for i in range(self.num_parts):
                part.width = self.parts[i].r.width
                vector_copy(&part, &self.parts[i].r)
                part.data += self.parts[i].r.width
        return 0


cdef class Steps(Bound):
    """Kernels that run one after another on the same number of tokens, as one call.

    Their time counts under the TIME_ label given, or under that of the caller.
    """

    cdef tuple steps
    cdef int label

    def __init__(self, *steps, label=None):
        cdef Bound step
        self.label = -1 if label is None else label
        if not -1 <= self.label < KANDIGA_NUM_TIMES:
            raise ValueError(f"label: {label}, expected 0 to {KANDIGA_NUM_TIMES - 1}")
        if not steps:
            raise ValueError("steps: none, expected at least one")
        for step in steps:
            self.max_tokens = min(self.max_tokens or step.max_tokens, step.max_tokens)
        self.steps = steps

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        if self.label >= 0:
            kandiga_time_label(<kandiga_time>self.label)
        for step in self.steps:
            (<Bound>step).run(num_tokens)
        return 0


cdef class ExpertSum(Bound):
    """out[t] = sum over k of scores[t, k] * results[order[t * K + k]], k ascending; T max_tokens.

    results (T * K, H), scores (T, K), out (T, H) float32; order (T * K,) int32. With a shared
    expert the sum begins with sigmoid(shared_gate) * shared, (T, 1) and (T, H). The order of the
    sum is fixed, so the result does not depend on the order in which experts arrived.
    """

    cdef expert_sum_args c
    cdef Py_ssize_t num_results

    def __init__(self, results, scores, order, out, *, shared=None, shared_gate=None):
        cdef Py_buffer* view = self.held.f32(scores, "scores", 2)
        self.max_tokens, self.c.top_k = view.shape[0], view.shape[1]
        self.c.scores = <const float*>view.buf
        self.num_results = self.max_tokens * self.c.top_k
        view = self.held.f32_out(out, "out", 2)
        self.c.hidden_size = view.shape[1]
        expect_shape(view, "out", self.max_tokens, self.c.hidden_size)
        self.c.out = <float*>view.buf
        view = self.held.f32(results, "results", 2)
        expect_shape(view, "results", self.num_results, self.c.hidden_size)
        self.c.results = <const float*>view.buf
        view = self.held.i32(order, "order", 1)
        expect_shape(view, "order", self.num_results)
        self.c.order = <const int32_t*>view.buf
        if (shared is None) != (shared_gate is None):
            raise ValueError("shared_gate: expected with shared, or neither")
        if shared is not None:
            view = self.held.f32(shared, "shared", 2)
            expect_shape(view, "shared", self.max_tokens, self.c.hidden_size)
            self.c.shared = <const float*>view.buf
            view = self.held.f32(shared_gate, "shared_gate", 2)
            expect_shape(view, "shared_gate", self.max_tokens, 1)
            self.c.shared_gate = <const float*>view.buf

    cdef int run(self, Py_ssize_t num_tokens) except -1:
        cdef expert_sum_args args = self.c
        args.num_tokens = num_tokens
        _check_indices("order", args.order, num_tokens * args.top_k, self.num_results)
        with nogil:
            kandiga_time_label(KANDIGA_TIME_EXPERTS)
            vector_expert_sum(&args)
            kandiga_time_label(KANDIGA_TIME_DENSE)
        return 0


cdef class TokenExperts(Bound):
    """results (K, H) = the MLPs of the K experts of one token, the first row of x (T, H).

    experts (K,) int32 says which; order (K,) int32 is left counting from 0, for ExpertSum.
    """

    cdef ExpertLayout layout
    cdef const float* x
    cdef float* results
    cdef float* scratch
    cdef int32_t* order
    cdef const int32_t* experts
    cdef Py_ssize_t top_k
    cdef const int32_t* offsets
    cdef const int32_t* rows
    cdef uint64_t* addresses

    def __init__(self, ExpertLayout layout not None, x, experts, results, order, scratch):
        import numpy

        self.layout = layout
        self.max_tokens = 1
        cdef Py_buffer* view = self.held.f32(x, "x", 2)
        expect_shape(view, "x", view.shape[0], layout.hidden_size)
        self.x = <const float*>view.buf
        view = self.held.i32(experts, "experts", 1)
        self.top_k = view.shape[0]
        self.experts = <const int32_t*>view.buf
        view = self.held.i32_out(order, "order", 1)
        expect_shape(view, "order", self.top_k)
        self.order = <int32_t*>view.buf
        view = self.held.f32_out(results, "results", 2)
        expect_shape(view, "results", self.top_k, layout.hidden_size)
        self.results = <float*>view.buf
        view = self.held.f32_out(scratch, "scratch", 1)
        cdef Py_ssize_t wanted = kandiga_expert_scratch_floats(&layout.c, self.top_k)
        if view.shape[0] < wanted:
            raise ValueError(f"scratch: {view.shape[0]} floats, expected at least {wanted}")
        self.scratch = <float*>view.buf
        counting = numpy.arange(self.top_k + 1, dtype=numpy.int32)
        self.offsets = <const int32_t*>self.held.i32(counting, "offsets", 1).buf
        zeros = numpy.zeros(self.top_k, dtype=numpy.int32)
        self.rows = <const int32_t*>self.held.i32(zeros, "rows", 1).buf
        addresses = numpy.zeros(self.top_k, dtype=numpy.uint64)
        self.addresses = <uint64_t*>self.held.get(addresses, "", ("uint64",), 1, True).buf

    def __call__(self, table):
        """Compute with the addresses of all experts (E,) uint64, 0 for those not in memory.

        Returns False, and does nothing, when the token wants one of these.
        """
        cdef Buffers held = Buffers()
        cdef Py_buffer* view = held.get(table, "table", ("uint64",), 1, False)
        cdef const uint64_t* known = <const uint64_t*>view.buf
        cdef int32_t k
        cdef int status
        _check_indices("experts", self.experts, self.top_k, view.shape[0])
        for k in range(self.top_k):
            self.order[k] = k
            self.addresses[k] = known[self.experts[k]]
            if self.addresses[k] == 0:
                return False
        with nogil:
            kandiga_time_label(KANDIGA_TIME_EXPERTS)
            status = kandiga_expert_mlp(
                &self.layout.c, self.addresses, self.top_k, self.offsets, self.rows, self.x, 1,
                self.results, self.scratch,
            )
        if status:
            raise MemoryError("expert_mlp: no memory for scratch")
        return True
