"""Runs all benchmarks in turn."""

import argparse

from benchmarks import class_vectors, losses, quadruplet, triplet
from benchmarks.measure import print_environment

if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks", description=f"{__doc__} Each is a module too.").parse_args()
    print_environment()
    for benchmark in (quadruplet, class_vectors, triplet, losses):
        benchmark.main()
