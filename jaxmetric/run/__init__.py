"""What the command line runs: training, evaluation, comparison of runs, compilation, several processes."""
