"""Proofs about the CUDA kernels on machines without a GPU.

`emulation` runs a kernel's source on the CPU; `nvrtc` compiles it with NVIDIA's compiler, which needs no driver,
and reads what came out; `ptx` runs what the compiler made of it. What none of them proves: the last step from PTX to
machine code, the order of memory between blocks, and speed.

Not named ``cuda``: that would hide the package of that name, which CuPy imports.
"""
