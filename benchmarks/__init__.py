"""Speed of the kernels beside their peers: `pytest benchmarks --benchmark-only`."""
