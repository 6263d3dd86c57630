"""The CPU engine: numpy buffers and cython_kernels, without mlx or transformers.

engine.py         Engine over a decoder; memory budget, states
decoder.py        embedding, layers, norm, head
blocks/           what layers are made of, one block a file
architectures/    which blocks a family uses, read from its config.json
weights.py        tensors by name; scratch.py, the buffers between kernels
token_work.py     what a token needs at least; reading_alone.py, how fast memory gives it
"""
