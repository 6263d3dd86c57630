"""Any mlx-lm MoE model, with its routed experts taken from the container instead of from memory.

mlx-lm's own classes compute attention, norms, router and shared experts. Each SwitchGLU or
SwitchMLP in them is replaced by a module that reads the chosen experts from the expert store.
Nothing outside this package imports mlx.
"""
