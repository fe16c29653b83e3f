"""Runnable experiments: `python -m experiments.train`, `python -m experiments.evaluate`."""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Python is about to import one of the commands, which takes a second, and jax's collection of garbage swallows
    # exceptions: Ctrl-C ends the process, without a page of frames. Training listens to it in its own way.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
