"""All benchmarks, one after the other."""

from benchmarks import class_vectors, losses, quadruplet, triplet
from benchmarks.measure import print_environment

if __name__ == "__main__":
    print_environment()
    for benchmark in (quadruplet, class_vectors, triplet, losses):
        benchmark.main()
