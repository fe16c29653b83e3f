"""All benchmarks, one after the other."""

from benchmarks import quadruplet, soft_triple, triplet
from benchmarks.measure import print_environment

if __name__ == "__main__":
    print_environment()
    for benchmark in (quadruplet, soft_triple, triplet):
        benchmark.main()
