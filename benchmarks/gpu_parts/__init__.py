"""The parts of `benchmarks/gpu.py`: what it asks of a GPU, one question a module."""
