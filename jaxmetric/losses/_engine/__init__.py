"""What losses are made of: comparisons of a batch, sums over tuples, softmaxes over classes, reductions."""
