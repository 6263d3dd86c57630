from ._kernels import cpu_count
