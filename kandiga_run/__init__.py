"""Container in, tokens out.

engine.py      the seam: `load_engine`, `Engine.forward(tokens, state) -> logits`
container.py   an opened container as a model: dense tensors, expert layouts; config.py, its config
experts/       routed experts in memory: mapped or owned, read by worker threads
native/        the CPU engine: numpy buffers and cython_kernels; never imports mlx
mlx_engine/    every other mlx-lm family, its experts streamed from the same store
kv/            what attention and recurrent layers keep of a sequence
stats.py       counters of a run; memory.py, what the kernel charges this process
prompts, sampling, generate, chat, cli: from text to tokens and back
"""
