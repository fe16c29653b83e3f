"""The parts that losses share: comparisons of a batch, sums over tuples, softmaxes over classes, reductions."""
