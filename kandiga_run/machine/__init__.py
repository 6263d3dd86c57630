"""The machine that a model runs on.

facts.py     what it is, as figures must be quoted with
ceilings.py  what its memory, disk and our kernels can do at best, measured
"""
