"""Benchmarks of speed and memory as ratios within one run: `python -m benchmarks`, or one of its modules."""
