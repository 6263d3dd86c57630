# The compressed KV cache: the border of csrc/turboquant.h.
from libc.stdlib cimport free, realloc
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void** memory, size_t alignment, size_t size)

cdef extern from "block_memory.h" nogil:
    void* kandiga_take_block(size_t block_bytes)
    int kandiga_give_block(void* block)

cdef extern from "turboquant.h" nogil:
    cdef enum:
        TQ_BLOCK_TOKENS
        TQ_MAX_HEAD_DIM
        TQ_KEY_SEED
        TQ_VALUE_SEED
        TQ_RESIDUAL_SEED

    struct turboquant_layout:
        size_t num_kv_heads
        size_t head_dim
        size_t record_bytes
        size_t block_bytes
        size_t stages
        const float* key_signs
        const float* value_signs
        const float* residual_signs

    struct turboquant_cache:
        const turboquant_layout* layout
        const uint8_t* const* blocks
        const int32_t* counts
        size_t num_blocks

    void turboquant_make_layout(size_t num_kv_heads, size_t head_dim, int key_bits, int value_bits,
                                int has_residual, turboquant_layout* layout)
    void turboquant_signs(uint64_t seed, size_t count, float* signs)
    void turboquant_encode(const turboquant_layout* layout, const uint16_t* keys,
                           const uint16_t* values, ptrdiff_t head_stride, ptrdiff_t token_stride,
                           const float* energies, uint8_t* block)
    void turboquant_add_energies(const rows* q, size_t num_kv_heads, float* energies)
    void turboquant_decode(const turboquant_layout* layout, const uint8_t* record, int is_keys,
                           float* out)
    int turboquant_attention_c "turboquant_attention"(const turboquant_cache* cache,
                                                      const attention_args* args, const rows* out)


# A short cache has no use for huge pages: the first one would be larger than all it holds.
cdef enum:
    FIRST_HUGE_BLOCK = 32


cdef void free_block(uint8_t* block) noexcept:
    if not kandiga_give_block(block):
        free(block)


cdef class TurboQuantBlocks:
    """Coded keys and values of one layer, in blocks of 128 tokens; owns their memory.

    key_bits and value_bits are 2, 3, 4 or 8. With qjl one of 3 or 4 key bits is the sign of the
    residual's projection. head_dim is at most 512.
    """

    cdef turboquant_layout layout
    cdef float* signs
    cdef uint8_t** blocks
    cdef int32_t* counts
    cdef size_t count, capacity
    cdef readonly int key_bits, value_bits
    cdef readonly bint qjl

    def __cinit__(self, Py_ssize_t num_kv_heads, Py_ssize_t head_dim, int key_bits, int value_bits,
                  *, bint qjl=False):
        if num_kv_heads < 1:
            raise ValueError(f"num_kv_heads: {num_kv_heads}, expected at least 1")
        if not 1 <= head_dim <= TQ_MAX_HEAD_DIM:
            raise ValueError(f"head_dim: {head_dim}, expected 1 to {TQ_MAX_HEAD_DIM}")
        for name, bits in (("key_bits", key_bits), ("value_bits", value_bits)):
            if bits not in (2, 3, 4, 8):
                raise ValueError(f"{name}: {bits}, expected 2, 3, 4 or 8")
        if qjl and key_bits not in (3, 4):
            raise ValueError(f"key_bits: {key_bits}, expected 3 or 4 with qjl")
        self.key_bits, self.value_bits, self.qjl = key_bits, value_bits, qjl
        turboquant_make_layout(num_kv_heads, head_dim, key_bits, value_bits, qjl, &self.layout)
        cdef size_t signs = self.layout.stages * head_dim
        self.signs = <float*>realloc(NULL, 3 * signs * sizeof(float))
        if self.signs == NULL:
            raise MemoryError()
        turboquant_signs(TQ_KEY_SEED, signs, self.signs)
        turboquant_signs(TQ_VALUE_SEED, signs, self.signs + signs)
        turboquant_signs(TQ_RESIDUAL_SEED, signs, self.signs + 2 * signs)
        self.layout.key_signs = self.signs
        self.layout.value_signs = self.signs + signs
        self.layout.residual_signs = self.signs + 2 * signs

    def __dealloc__(self):
        for i in range(self.count):
            free_block(self.blocks[i])
        free(self.blocks)
        free(self.counts)
        free(self.signs)

    @property
    def block_bytes(self):
        """Size of a block of all KV heads."""
        return self.layout.block_bytes

    @property
    def nbytes(self):
        """Size of the blocks held and of the tables that find them."""
        cdef size_t per_block = sizeof(void*) + sizeof(int32_t)
        return self.count * self.layout.block_bytes + self.capacity * per_block

    @property
    def num_tokens(self):
        """Tokens held."""
        cdef Py_ssize_t total = 0
        for i in range(self.count):
            total += self.counts[i]
        return total

    def __len__(self):
        """Return the number of blocks."""
        return self.count

    cdef uint8_t* add_block(self, int32_t tokens) except NULL:
        """A block more, not yet written. Its address is kept before anything can fail."""
        cdef size_t capacity
        cdef void* memory = NULL
        if self.count == self.capacity:
            capacity = self.capacity + self.capacity // 8 + 8
            memory = realloc(self.blocks, capacity * sizeof(uint8_t*))
            if memory == NULL:
                raise MemoryError()
            self.blocks = <uint8_t**>memory
            memory = realloc(self.counts, capacity * sizeof(int32_t))
            if memory == NULL:
                raise MemoryError()
            self.counts = <int32_t*>memory
            self.capacity = capacity
        memory = NULL
        if self.count >= FIRST_HUGE_BLOCK:
            memory = kandiga_take_block(self.layout.block_bytes)
        if memory == NULL and posix_memalign(&memory, 64, self.layout.block_bytes) != 0:
            raise MemoryError(f"no memory for a block of {self.layout.block_bytes} bytes")
        self.blocks[self.count] = <uint8_t*>memory
        self.counts[self.count] = tokens
        self.count += 1
        return <uint8_t*>memory

    def encode(self, keys, values, Py_ssize_t start, energies=None):
        """Add the 128 tokens from `start` on of keys and values (Hkv, capacity, D) float16.

        energies (Hkv, D) float32: what queries have in each channel, as `add_query_energies` counts
        it. Keys are then coded so that such queries see the least of the error.
        """
        cdef Buffers held = Buffers()
        cdef Cache k, v
        cdef uint8_t* block
        take_cache_pair(held, keys, values, False, &k, &v)
        expect_coded_cache(self, keys, &k, &v)
        if start < 0 or start + TQ_BLOCK_TOKENS > <Py_ssize_t>k.capacity:
            raise ValueError(
                f"start: {start}, expected 0 to {<Py_ssize_t>k.capacity - TQ_BLOCK_TOKENS}"
            )
        cdef Py_buffer* seen
        cdef const float* weights = NULL
        if energies is not None:
            seen = held.get(energies, "energies", ("float32",), 2, False)
            expect_shape(seen, "energies", self.layout.num_kv_heads, self.layout.head_dim)
            weights = <const float*>seen.buf
        block = self.add_block(TQ_BLOCK_TOKENS)
        cdef const uint16_t* key_rows = <const uint16_t*>k.data + start * k.position_stride
        cdef const uint16_t* value_rows = <const uint16_t*>v.data + start * v.position_stride
        with nogil:
            turboquant_encode(&self.layout, key_rows, value_rows, k.head_stride, k.position_stride,
                              weights, block)

    def trim(self, Py_ssize_t num_tokens):
        """Forget the last tokens. A block that keeps some stays as it was coded."""
        if not 0 <= num_tokens <= self.num_tokens:
            raise ValueError(f"num_tokens: {num_tokens}, expected 0 to {self.num_tokens}")
        cdef Py_ssize_t rest = num_tokens
        while rest > 0:
            if rest < self.counts[self.count - 1]:
                self.counts[self.count - 1] -= <int32_t>rest
                return
            self.count -= 1
            rest -= self.counts[self.count]
            free_block(self.blocks[self.count])

    def counts_of_blocks(self):
        """Return the tokens of each block."""
        return [self.counts[i] for i in range(self.count)]

    def save(self, Py_ssize_t index, out):
        """Copy a block into out, uint8 (block_bytes,)."""
        cdef Buffers held = Buffers()
        cdef Py_buffer* buffer = held.get(out, "out", ("uint8",), 1, True)
        expect_shape(buffer, "out", self.layout.block_bytes)
        check_index(self, index)
        memcpy(buffer.buf, self.blocks[index], self.layout.block_bytes)

    def load(self, block, Py_ssize_t num_tokens):
        """Add a block that `save` gave, uint8 (block_bytes,), of 1 to 128 tokens."""
        cdef Buffers held = Buffers()
        cdef Py_buffer* buffer = held.get(block, "block", ("uint8",), 1, False)
        expect_shape(buffer, "block", self.layout.block_bytes)
        if not 1 <= num_tokens <= TQ_BLOCK_TOKENS:
            raise ValueError(f"num_tokens: {num_tokens}, expected 1 to {TQ_BLOCK_TOKENS}")
        memcpy(self.add_block(<int32_t>num_tokens), buffer.buf, self.layout.block_bytes)

    def decode(self, Py_ssize_t index, Py_ssize_t head, keys, values):
        """Write what a block holds for one KV head into keys and values (128, D) float32."""
        cdef Buffers held = Buffers()
        cdef Py_buffer* key_rows = held.f32_out(keys, "keys", 2)
        cdef Py_buffer* value_rows = held.f32_out(values, "values", 2)
        expect_shape(key_rows, "keys", TQ_BLOCK_TOKENS, self.layout.head_dim)
        expect_shape(value_rows, "values", TQ_BLOCK_TOKENS, self.layout.head_dim)
        check_index(self, index)
        if not 0 <= head < <Py_ssize_t>self.layout.num_kv_heads:
            raise ValueError(f"head: {head}, expected 0 to {self.layout.num_kv_heads - 1}")
        cdef const uint8_t* record = self.blocks[index] + head * self.layout.record_bytes
        with nogil:
            turboquant_decode(&self.layout, record, True, <float*>key_rows.buf)
            turboquant_decode(&self.layout, record, False, <float*>value_rows.buf)


cdef int check_index(TurboQuantBlocks blocks, Py_ssize_t index) except -1:
    if not 0 <= index < <Py_ssize_t>blocks.count:
        raise ValueError(f"index: {index}, expected 0 to {<Py_ssize_t>blocks.count - 1}")
    return 0


cdef int expect_coded_cache(TurboQuantBlocks blocks, object keys, Cache* k, Cache* v) except -1:
    """Uncoded keys and values must be float16, of the blocks' shape, and strided alike."""
    if (not k.half or k.num_heads != blocks.layout.num_kv_heads
            or k.head_dim != blocks.layout.head_dim):
        raise ValueError(
            f"keys: {_describe(keys)}, expected float16"
            f" {(blocks.layout.num_kv_heads, k.capacity, blocks.layout.head_dim)}"
        )
    if k.head_stride != v.head_stride or k.position_stride != v.position_stride:
        raise ValueError("values: other strides than keys, expected the same")
    return 0


def add_query_energies(q, energies):
    """Add the squares of q (T, Hq, D) to energies (Hkv, D) float32, token by token."""
    cdef Buffers held = Buffers()
    cdef View vq
    take_rows(held, q, "q", False, &vq, 3)
    cdef Py_buffer* sums = held.f32_out(energies, "energies", 2)
    cdef size_t num_kv_heads = <size_t>sums.shape[0]
    if <size_t>sums.shape[1] != vq.r.width or not num_kv_heads or vq.r.n1 % num_kv_heads:
        raise ValueError(
            f"energies: {_describe(energies)}, expected rows of {vq.r.width} for a divisor of"
            f" {vq.r.n1} heads"
        )
    cdef float* data = <float*>sums.buf
    with nogil:
        turboquant_add_energies(&vq.r, num_kv_heads, data)


def turboquant_attention(TurboQuantBlocks blocks not None, q, keys, values, Py_ssize_t kv_len,
                         float scale, out):
    """Attention of q (T, Hq, D) over all coded tokens, then causally over the first kv_len rows of
    keys and values (Hkv, capacity, D) float16, whose last T are those of q.

    The order of keys does not matter to attention: uncoded rows may hold a sequence's first tokens
    besides its last. MemoryError when there is none for partial sums.
    """
    cdef Buffers held = Buffers()
    cdef View vq, vout
    cdef Cache k, v
    cdef attention_args args
    cdef turboquant_cache cache
    cdef int failed
    take_rows(held, q, "q", False, &vq, 3)
    take_like(held, out, "out", True, &vout, &vq, "q")
    take_cache_pair(held, keys, values, False, &k, &v)
    expect_coded_cache(blocks, keys, &k, &v)
    take_attention(&vq, &k, &v, kv_len, scale, &args)
    cache.layout = &blocks.layout
    cache.blocks = <const uint8_t* const*>blocks.blocks
    cache.counts = blocks.counts
    cache.num_blocks = blocks.count
    with nogil:
        failed = turboquant_attention_c(&cache, &args, &vout.r)
    if failed:
        raise MemoryError(f"turboquant_attention: no memory for {vq.r.n0} tokens' partial sums")
