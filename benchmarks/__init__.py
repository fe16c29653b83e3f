"""Speed and memory beside the peers, as ratios from one run: `python -m benchmarks`, or one of its modules."""
