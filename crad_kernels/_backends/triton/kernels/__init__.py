"""Loops around the meaning in `axis` and `jitter`: a kernel for each way to do the work.

A program takes a block of points, or of what they add to. The corners of a point are the product of
its taps over the axes, the first axis the fastest to vary; its `taps` are, along each axis, the
position that they start from, the distance of the index from it, and the slope of the index.

Kernels are compiled without contraction of products and sums, so that an index is the same number
on every backend, and jitter the same as if it had been added before; sums over taps say `fma`.

Names of tensors, and numbers, are those of `launch`; in capitals is what the compiler knows. The
channels are `groups` of GROUP, from which it sees how rows are aligned.
"""
