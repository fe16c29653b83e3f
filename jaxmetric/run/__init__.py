"""The commands: training, evaluation, comparison of runs, compilation, several processes."""
