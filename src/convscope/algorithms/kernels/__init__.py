"""Kernels in machine code, built at run time with llvmlite: no compiler on the user's machine."""
