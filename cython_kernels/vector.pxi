# Norms, rope, attention, gated delta rule, routing: the border of csrc/vector.h.
#
# A float32 argument of one to three axes has a contiguous last axis; the others may have any
# stride, so that callers can pass slices of a fused projection. T tokens, n heads, D head_dim.
# Nothing is allocated; wrong shapes, dtypes and strides are ValueErrors.
from libc.stdint cimport int32_t, int64_t, uint16_t

cdef extern from "vector.h" nogil:
    cdef enum:
        ROPE_MAX_PAIRS

    struct rows:
        float* data
        size_t n0
        size_t n1
        size_t width
        ptrdiff_t stride0
        ptrdiff_t stride1

    struct attention_args:
        const float* q
        ptrdiff_t q_token_stride
        ptrdiff_t q_head_stride
        const void* keys
        const void* values
        ptrdiff_t key_head_stride
        ptrdiff_t key_stride
        ptrdiff_t value_head_stride
        ptrdiff_t value_stride
        int half_cache
        size_t num_tokens
        size_t num_kv_heads
        size_t group
        size_t head_dim
        size_t kv_len
        float scale

    struct gated_delta_args:
        const float* q
        const float* k
        ptrdiff_t q_token_stride
        ptrdiff_t q_head_stride
        ptrdiff_t k_token_stride
        ptrdiff_t k_head_stride
        const float* v
        ptrdiff_t v_token_stride
        ptrdiff_t v_head_stride
        const float* g
        const float* beta
        ptrdiff_t g_token_stride
        ptrdiff_t beta_token_stride
        float* state
        float* out
        ptrdiff_t out_token_stride
        ptrdiff_t out_head_stride
        size_t num_tokens
        size_t num_key_heads
        size_t num_value_heads
        size_t key_dim
        size_t value_dim

    struct causal_conv_args:
        const float* x
        ptrdiff_t x_token_stride
        const float* weight
        float* state
        float* out
        ptrdiff_t out_token_stride
        size_t num_tokens
        size_t channels
        size_t taps

    struct gated_delta_heads_args:
        const float* qkv
        const float* z
        const float* a
        const float* b
        ptrdiff_t qkv_token_stride
        ptrdiff_t z_token_stride
        ptrdiff_t a_token_stride
        ptrdiff_t b_token_stride
        const float* conv_weight
        const float* a_log
        const float* dt_bias
        const float* norm_weight
        float* conv_state
        float* state
        size_t num_tokens
        size_t num_key_heads
        size_t num_value_heads
        size_t key_dim
        size_t value_dim
        size_t conv_taps
        float norm_eps
        float normalize_eps

    struct expert_sum_args:
        const float* results
        const float* scores
        const int32_t* order
        const float* shared
        const float* shared_gate
        float* out
        size_t num_tokens
        size_t top_k
        size_t hidden_size

    enum score_mode:
        SCORES_OF_ALL
        SCORES_OF_SELECTED

    void vector_rms_norm(const rows* x, const float* weight, float eps, const rows* out)
    void vector_add_rms_norm(const rows* x, const rows* delta, const float* weight, float eps,
                             const rows* out)
    void vector_rms_norm_gated(const rows* x, const rows* gate, const float* weight, float eps,
                               const rows* out)
    void vector_l2_normalize(const rows* x, float eps, float scale)
    void vector_add(const rows* x, const rows* y)
    void vector_silu_mul(const rows* gate, const rows* up, const rows* out)
    void vector_sigmoid_mul(const rows* x, const rows* gate, const rows* out)
    void vector_sigmoid_scale_add(const rows* x, const rows* gate, const rows* out)
    void vector_exp(const rows* x, const rows* out)
    void vector_copy(const rows* x, const rows* out)
    void vector_rope(const rows* x, const float* inv_freq, size_t pairs, int64_t offset,
                     int traditional, float scale)
    void vector_kv_append(const rows* x, void* cache, ptrdiff_t head_stride,
                          ptrdiff_t position_stride, int half_cache, size_t offset)
    int vector_attention(const attention_args* args, const rows* out)
    void vector_gated_delta_gates(const rows* a, const rows* b, const float* a_log,
                                  const float* dt_bias, const rows* g_out, const rows* beta_out)
    void vector_gated_delta(const gated_delta_args* args)
    void vector_causal_conv(const causal_conv_args* args)
    int vector_gated_delta_heads(const gated_delta_heads_args* args, const rows* out)
    void vector_expert_sum(const expert_sum_args* args)
    void vector_top_k(const rows* logits, size_t top_k, score_mode mode, int32_t* indices,
                      float* scores)


# A float32 array of one to three axes; missing leading axes have length 1.
cdef struct View:
    rows r
    int ndim

# A KV cache tensor (heads, capacity, head_dim), float32 or float16; strides in elements.
cdef struct Cache:
    void* data
    size_t num_heads
    size_t capacity
    size_t head_dim
    ptrdiff_t head_stride
    ptrdiff_t position_stride
    bint half


cdef tuple view_shape(const View* view):
    if view.ndim == 1:
        return (view.r.width,)
    if view.ndim == 2:
        return (view.r.n0, view.r.width)
    return (view.r.n0, view.r.n1, view.r.width)


cdef int take_rows(Buffers held, object array, str name, bint writable, View* view,
                   int ndim=0) except -1:
    """A float32 array with `ndim` axes, or with one to three when it is 0."""
    cdef Py_buffer* buffer = held.strided(array, name, ("float32",), writable)
    if not (buffer.ndim == ndim if ndim else 1 <= buffer.ndim <= 3):
        raise ValueError(f"{name}: {_describe(array)}, expected {ndim or '1 to 3'} dimensions")
    view.ndim = buffer.ndim
    view.r.data = <float*>buffer.buf
    view.r.width = buffer.shape[buffer.ndim - 1]
    view.r.n0 = buffer.shape[0] if buffer.ndim > 1 else 1
    view.r.n1 = buffer.shape[1] if buffer.ndim > 2 else 1
    view.r.stride0 = buffer.strides[0] // <ptrdiff_t>sizeof(float) if buffer.ndim > 1 else 0
    view.r.stride1 = buffer.strides[1] // <ptrdiff_t>sizeof(float) if buffer.ndim > 2 else 0
    return 0


cdef int take_like(Buffers held, object array, str name, bint writable, View* view,
                   const View* other, str other_name) except -1:
    """A float32 array of the same shape as another argument."""
    take_rows(held, array, name, writable, view)
    if (view.ndim != other.ndim or view.r.n0 != other.r.n0 or view.r.n1 != other.r.n1
            or view.r.width != other.r.width):
        raise ValueError(
            f"{name}: shape {view_shape(view)}, expected {view_shape(other)} as {other_name}"
        )
    return 0


cdef const float* take_vector(Buffers held, object array, str name, Py_ssize_t length) except? NULL:
    cdef Py_buffer* buffer = held.f32(array, name, 1)
    expect_shape(buffer, name, length)
    return <const float*>buffer.buf


cdef int take_cache(Buffers held, object array, str name, bint writable, Cache* cache) except -1:
    cdef Py_buffer* buffer = held.strided(array, name, ("float16", "float32"), writable)
    if buffer.ndim != 3:
        raise ValueError(f"{name}: {_describe(array)}, expected (kv_heads, capacity, head_dim)")
    cache.data = buffer.buf
    cache.half = buffer.itemsize == 2
    cache.num_heads = buffer.shape[0]
    cache.capacity = buffer.shape[1]
    cache.head_dim = buffer.shape[2]
    cache.head_stride = buffer.strides[0] // buffer.itemsize
    cache.position_stride = buffer.strides[1] // buffer.itemsize
    return 0


cdef int take_cache_pair(Buffers held, object keys, object values, bint writable, Cache* k,
                         Cache* v) except -1:
    take_cache(held, keys, "keys", writable, k)
    take_cache(held, values, "values", writable, v)
    if (k.num_heads != v.num_heads or k.capacity != v.capacity or k.head_dim != v.head_dim
            or k.half != v.half):
        raise ValueError(f"values: {_describe(values)}, expected {_describe(keys)} as keys")
    return 0


def rms_norm(x, weight, float eps, out):
    """out = x / sqrt(mean(x^2) + eps) * weight over the last axis; 1 to 3 dims; out may be x."""
    cdef Buffers held = Buffers()
    cdef View vx, vout
    cdef const float* w = NULL
    take_rows(held, x, "x", False, &vx)
    take_like(held, out, "out", True, &vout, &vx, "x")
    if weight is not None:
        w = take_vector(held, weight, "weight", vx.r.width)
    with nogil:
        vector_rms_norm(&vx.r, w, eps, &vout.r)


def head_rms_norm(x, weight, float eps):
    """rms_norm of each head of x (T, n, D) in place; weight (D,)."""
    rms_norm(x, weight, eps, x)


def add_rms_norm(x, delta, weight, float eps, out):
    """x += delta in place, then out = rms_norm(x); all (T, H)."""
    cdef Buffers held = Buffers()
    cdef View vx, vdelta, vout
    cdef const float* w = NULL
    take_rows(held, x, "x", True, &vx)
    take_like(held, delta, "delta", False, &vdelta, &vx, "x")
    take_like(held, out, "out", True, &vout, &vx, "x")
    if weight is not None:
        w = take_vector(held, weight, "weight", vx.r.width)
    with nogil:
        vector_add_rms_norm(&vx.r, &vdelta.r, w, eps, &vout.r)


def rms_norm_gated(x, gate, weight, float eps, out):
    """out = rms_norm(x) * silu(gate); all (T, n, D), weight (D,); out may be x or gate."""
    cdef Buffers held = Buffers()
    cdef View vx, vgate, vout
    cdef const float* w
    take_rows(held, x, "x", False, &vx)
    take_like(held, gate, "gate", False, &vgate, &vx, "x")
    take_like(held, out, "out", True, &vout, &vx, "x")
    w = take_vector(held, weight, "weight", vx.r.width)
    with nogil:
        vector_rms_norm_gated(&vx.r, &vgate.r, w, eps, &vout.r)


def l2_normalize_heads(x, float eps, float scale):
    """x *= scale / sqrt(sum(x^2) + eps) over the last axis, in place.

    mlx_lm's gated_delta.normalize_qk is scale = D**-0.5 for q and 1 for k, eps = 1e-6.
    """
    cdef Buffers held = Buffers()
    cdef View vx
    take_rows(held, x, "x", True, &vx)
    with nogil:
        vector_l2_normalize(&vx.r, eps, scale)


def add(x, y):
    """x += y."""
    cdef Buffers held = Buffers()
    cdef View vx, vy
    take_rows(held, x, "x", True, &vx)
    take_like(held, y, "y", False, &vy, &vx, "x")
    with nogil:
        vector_add(&vx.r, &vy.r)


def silu_mul(gate, up, out):
    """out = silu(gate) * up; out may be either."""
    cdef Buffers held = Buffers()
    cdef View vgate, vup, vout
    take_rows(held, gate, "gate", False, &vgate)
    take_like(held, up, "up", False, &vup, &vgate, "gate")
    take_like(held, out, "out", True, &vout, &vgate, "gate")
    with nogil:
        vector_silu_mul(&vgate.r, &vup.r, &vout.r)


def sigmoid_mul(x, gate, out):
    """out = x * sigmoid(gate); out may be either."""
    cdef Buffers held = Buffers()
    cdef View vx, vgate, vout
    take_rows(held, x, "x", False, &vx)
    take_like(held, gate, "gate", False, &vgate, &vx, "x")
    take_like(held, out, "out", True, &vout, &vx, "x")
    with nogil:
        vector_sigmoid_mul(&vx.r, &vgate.r, &vout.r)


def sigmoid_scale_add(x, gate, out):
    """out += sigmoid(gate) * x; x and out (T, H), gate (T, 1)."""
    cdef Buffers held = Buffers()
    cdef View vx, vgate, vout
    take_rows(held, x, "x", False, &vx, 2)
    take_rows(held, gate, "gate", False, &vgate, 2)
    if vgate.r.n0 != vx.r.n0 or vgate.r.width != 1:
        raise ValueError(
            f"gate: shape {view_shape(&vgate)}, expected {(vx.r.n0, 1)} (one gate a row of x)"
        )
    take_like(held, out, "out", True, &vout, &vx, "x")
    with nogil:
        vector_sigmoid_scale_add(&vx.r, &vgate.r, &vout.r)


def exponential(x, out):
    """out = exp(x), the exponential that every kernel uses; within 1.1 ulp, subnormals included."""
    cdef Buffers held = Buffers()
    cdef View vx, vout
    take_rows(held, x, "x", False, &vx)
    take_like(held, out, "out", True, &vout, &vx, "x")
    with nogil:
        vector_exp(&vx.r, &vout.r)


def split_interleaved(x, outs):
    """Copy slices of the last axis of x (T, n, W) to outs[i] (T, n, w_i), the sum of w_i being W.

    De-interleaves projections that keep the parts of a head together: q and gate of gated
    attention, q k v z and b a of qwen3_next.
    """
    cdef Buffers held = Buffers()
    cdef View vx, vpart
    cdef View[8] parts
    cdef size_t width = 0
    cdef int i, num_parts = len(outs)
    if not 1 <= num_parts <= 8:
        raise ValueError(f"outs: {num_parts} arrays, expected 1 to 8")
    take_rows(held, x, "x", False, &vx, 3)
    for i in range(num_parts):
        take_rows(held, outs[i], f"outs[{i}]", True, &parts[i], 3)
        if parts[i].r.n0 != vx.r.n0 or parts[i].r.n1 != vx.r.n1:
            raise ValueError(
                f"outs[{i}]: shape {view_shape(&parts[i])}, expected"
                f" {(vx.r.n0, vx.r.n1, parts[i].r.width)} (first two axes of x)"
            )
        width += parts[i].r.width
    if width != vx.r.width:
        raise ValueError(f"outs: widths add up to {width}, expected {vx.r.width} (last axis of x)")
    with nogil:
        vpart = vx
        for i in range(num_parts):
            vpart.r.width = parts[i].r.width
            vector_copy(&vpart.r, &parts[i].r)
            vpart.r.data += parts[i].r.width


def rope(x, inv_freq, int64_t offset, *, bint traditional=False, float scale=1.0):
    """Rotate the first 2 * len(inv_freq) dims of each head of x (T, n, D), in place.

    Token t has angle (offset + t) * scale * inv_freq, in float32. Pairs are (i, i + half), or
    (2i, 2i + 1) when traditional, as in mlx.nn.RoPE.
    """
    cdef Buffers held = Buffers()
    cdef View vx, vfreq
    take_rows(held, x, "x", True, &vx, 3)
    take_rows(held, inv_freq, "inv_freq", False, &vfreq, 1)
    if 2 * vfreq.r.width > vx.r.width:
        raise ValueError(
            f"inv_freq: {vfreq.r.width} pairs, expected at most {vx.r.width // 2} (x has"
            f" {vx.r.width} dims)"
        )
    if vfreq.r.width > ROPE_MAX_PAIRS:
        raise ValueError(f"inv_freq: {vfreq.r.width} pairs, expected at most {ROPE_MAX_PAIRS}")
    if offset < 0:
        raise ValueError(f"offset: {offset}, expected 0 or more")
    with nogil:
        vector_rope(&vx.r, vfreq.r.data, vfreq.r.width, offset, traditional, scale)


def kv_append(keys_new, values_new, keys, values, Py_ssize_t offset):
    """Write (T, Hkv, D) into caches (Hkv, capacity, D), float32 or float16, from offset on."""
    cdef Buffers held = Buffers()
    cdef View k_new, v_new
    cdef Cache k, v
    take_rows(held, keys_new, "keys_new", False, &k_new, 3)
    take_like(held, values_new, "values_new", False, &v_new, &k_new, "keys_new")
    take_cache_pair(held, keys, values, True, &k, &v)
    if k.num_heads != k_new.r.n1 or k.head_dim != k_new.r.width:
        raise ValueError(
            f"keys: shape {(k.num_heads, k.capacity, k.head_dim)}, expected "
            f"{(k_new.r.n1, k.capacity, k_new.r.width)} for keys_new {view_shape(&k_new)}"
        )
    if offset < 0 or offset + k_new.r.n0 > k.capacity:
        raise ValueError(
            f"offset: {offset} with {k_new.r.n0} tokens, expected an end within the capacity"
            f" {k.capacity}"
        )
    with nogil:
        vector_kv_append(&k_new.r, k.data, k.head_stride, k.position_stride, k.half, offset)
        vector_kv_append(&v_new.r, v.data, v.head_stride, v.position_stride, v.half, offset)


cdef int take_attention(const View* vq, const Cache* k, const Cache* v, Py_ssize_t kv_len,
                        float scale, attention_args* args) except -1:
    """The arguments of attention of vq over the first kv_len rows of a cache."""
    if k.head_dim != vq.r.width:
        raise ValueError(f"keys: head_dim {k.head_dim}, expected {vq.r.width} (last axis of q)")
    if k.num_heads == 0 or vq.r.n1 % k.num_heads:
        raise ValueError(
            f"keys: {k.num_heads} heads, expected a divisor of the {vq.r.n1} heads of q"
        )
    if not <Py_ssize_t>vq.r.n0 <= kv_len <= <Py_ssize_t>k.capacity:
        raise ValueError(
            f"kv_len: {kv_len}, expected {vq.r.n0} (tokens of q) to {k.capacity} (cache capacity)"
        )
    args.q = vq.r.data
    args.q_token_stride, args.q_head_stride = vq.r.stride0, vq.r.stride1
    args.keys, args.values = k.data, v.data
    args.key_head_stride, args.key_stride = k.head_stride, k.position_stride
    args.value_head_stride, args.value_stride = v.head_stride, v.position_stride
    args.half_cache = k.half
    args.num_tokens, args.num_kv_heads = vq.r.n0, k.num_heads
    args.group, args.head_dim, args.kv_len = vq.r.n1 // k.num_heads, k.head_dim, kv_len
    args.scale = scale
    return 0


def attention(q, keys, values, Py_ssize_t kv_len, float scale, out):
    """Causal attention of q (T, Hq, D) over the first kv_len rows of a cache (Hkv, capacity, D).

    Token t sees kv_len - T + t + 1 keys. Query head h reads KV head h // (Hq / Hkv). The result
    does not depend on the number of threads. MemoryError when a long context cannot be split.
    """
    cdef Buffers held = Buffers()
    cdef View vq, vout
    cdef Cache k, v
    cdef attention_args args
    cdef int failed
    take_rows(held, q, "q", False, &vq, 3)
    take_like(held, out, "out", True, &vout, &vq, "q")
    take_cache_pair(held, keys, values, False, &k, &v)
    take_attention(&vq, &k, &v, kv_len, scale, &args)
    with nogil:
        failed = vector_attention(&args, &vout.r)
    if failed:
        raise MemoryError(f"attention: no memory for the partial sums of {kv_len} keys")


def causal_conv(x, weight, state, out):
    """out = silu(depthwise causal convolution of x); x and out (T, C).

    weight (K, C), contiguous: the transpose of a checkpoint's (C, K, 1), so that neighbouring
    channels are neighbours in memory. state (K - 1, C): the last inputs, oldest first, updated.
    """
    cdef Buffers held = Buffers()
    cdef View vx, vout
    cdef Py_buffer* buffer
    cdef causal_conv_args args
    take_rows(held, x, "x", False, &vx, 2)
    take_like(held, out, "out", True, &vout, &vx, "x")
    if vout.r.data == vx.r.data:
        raise ValueError("out: the memory of x, expected another array (inputs become the state)")
    buffer = held.f32(weight, "weight", 2)
    args.taps = buffer.shape[0]
    if args.taps < 1 or buffer.shape[1] != <Py_ssize_t>vx.r.width:
        raise ValueError(
            f"weight: {_describe(weight)}, expected (taps, {vx.r.width}), the channels of x last"
        )
    args.weight = <const float*>buffer.buf
    buffer = held.f32_out(state, "state", 2)
    expect_shape(buffer, "state", args.taps - 1, vx.r.width)
    args.state = <float*>buffer.buf
    args.x, args.x_token_stride = vx.r.data, vx.r.stride0
    args.out, args.out_token_stride = vout.r.data, vout.r.stride0
    args.num_tokens, args.channels = vx.r.n0, vx.r.width
    with nogil:
        vector_causal_conv(&args)


def gated_delta_gates(a, b, a_log, dt_bias, g_out, beta_out):
    """g = exp(-exp(a_log) * softplus(a + dt_bias)), beta = sigmoid(b); (T, Hv), vectors (Hv,)."""
    cdef Buffers held = Buffers()
    cdef View va, vb, vg, vbeta
    cdef const float *log_decay
    cdef const float *bias
    take_rows(held, a, "a", False, &va)
    take_like(held, b, "b", False, &vb, &va, "a")
    take_like(held, g_out, "g_out", True, &vg, &va, "a")
    take_like(held, beta_out, "beta_out", True, &vbeta, &va, "a")
    if va.ndim != 2:
        raise ValueError(f"a: shape {view_shape(&va)}, expected (tokens, value_heads)")
    log_decay = take_vector(held, a_log, "a_log", va.r.width)
    bias = take_vector(held, dt_bias, "dt_bias", va.r.width)
    with nogil:
        vector_gated_delta_gates(&va.r, &vb.r, log_decay, bias, &vg.r, &vbeta.r)


def gated_delta(q, k, v, g, beta, state, out):
    """The gated delta rule, T tokens in order: S = g S; S += beta (v - S k) k^T; out = S q.

    q, k (T, Hk, Dk), normalized; v, out (T, Hv, Dv); g, beta (T, Hv); state (Hv, Dv, Dk) updated.
    Value head h reads key head h // (Hv / Hk).
    """
    cdef Buffers held = Buffers()
    cdef View vq, vk, vv, vg, vbeta, vout
    cdef Py_buffer* buffer
    cdef gated_delta_args args
    take_rows(held, q, "q", False, &vq, 3)
    take_like(held, k, "k", False, &vk, &vq, "q")
    take_rows(held, v, "v", False, &vv, 3)
    if vv.r.n0 != vq.r.n0:
        raise ValueError(f"v: {vv.r.n0} tokens, expected {vq.r.n0} as q")
    if vq.r.n1 == 0 or vv.r.n1 % vq.r.n1:
        raise ValueError(f"v: {vv.r.n1} heads, expected a multiple of the {vq.r.n1} heads of q")
    take_rows(held, g, "g", False, &vg, 2)
    if vg.r.n0 != vv.r.n0 or vg.r.width != vv.r.n1:
        raise ValueError(
            f"g: shape {view_shape(&vg)}, expected {(vv.r.n0, vv.r.n1)} (tokens and heads of v)"
        )
    take_like(held, beta, "beta", False, &vbeta, &vg, "g")
    take_like(held, out, "out", True, &vout, &vv, "v")
    buffer = held.f32_out(state, "state", 3)
    expect_shape(buffer, "state", vv.r.n1, vv.r.width, vq.r.width)
    args.q, args.q_token_stride, args.q_head_stride = vq.r.data, vq.r.stride0, vq.r.stride1
    args.k, args.k_token_stride, args.k_head_stride = vk.r.data, vk.r.stride0, vk.r.stride1
    args.v, args.v_token_stride, args.v_head_stride = vv.r.data, vv.r.stride0, vv.r.stride1
    args.g, args.g_token_stride = vg.r.data, vg.r.stride0
    args.beta, args.beta_token_stride = vbeta.r.data, vbeta.r.stride0
    args.out = vout.r.data
    args.out_token_stride, args.out_head_stride = vout.r.stride0, vout.r.stride1
    args.state = <float*>buffer.buf
    args.num_tokens, args.num_key_heads, args.num_value_heads = vq.r.n0, vq.r.n1, vv.r.n1
    args.key_dim, args.value_dim = vq.r.width, vv.r.width
    with nogil:
        vector_gated_delta(&args)


cdef dict SCORE_MODES = {
    "softmax_then_topk": SCORES_OF_ALL,
    "softmax_then_topk_normalized": SCORES_OF_SELECTED,
    "topk_then_softmax": SCORES_OF_SELECTED,
}


def top_k_routing(logits, Py_ssize_t top_k, str mode, indices, scores):
    """Select top_k of logits (T, E) into indices and scores (T, top_k), by descending logit.

    Ties go to the lower index. mode: "softmax_then_topk", "softmax_then_topk_normalized" or
    "topk_then_softmax". A NaN logit ranks last and makes the scores of its token NaN.
    """
    cdef Buffers held = Buffers()
    cdef View vlogits
    cdef Py_buffer* buffer
    cdef score_mode score
    cdef int32_t* index_data
    cdef float* score_data
    take_rows(held, logits, "logits", False, &vlogits, 2)
    if not 1 <= top_k <= <Py_ssize_t>vlogits.r.width:
        raise ValueError(f"top_k: {top_k}, expected 1 to {vlogits.r.width} (experts in logits)")
    if mode not in SCORE_MODES:
        raise ValueError(f"mode: {mode!r}, expected one of {', '.join(SCORE_MODES)}")
    score = SCORE_MODES[mode]
    buffer = held.i32_out(indices, "indices", 2)
    expect_shape(buffer, "indices", vlogits.r.n0, top_k)
    index_data = <int32_t*>buffer.buf
    buffer = held.f32_out(scores, "scores", 2)
    expect_shape(buffer, "scores", vlogits.r.n0, top_k)
    score_data = <float*>buffer.buf
    with nogil:
        vector_top_k(&vlogits.r, top_k, score, index_data, score_data)
