"""What surrounds a command: its start, its end, and how a person is told."""

import subprocess
import sys
import textwrap

from experiments.console import with_room_for_frames


def test_a_loop_of_calls_maps_no_memory_however_deep_it_lies():
    program = textwrap.dedent("""
        import resource
        import sys
        from experiments.console import with_room_for_frames

        def leaf():
            pass

        leaf.__code__ = leaf.__code__.replace(co_stacksize=500)  # as large as it takes to meet the end of a piece

        def faults(depth):
            if depth:
                return faults(depth - 1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(300):
                leaf()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        print(with_room_for_frames(lambda: max(faults(depth) for depth in range(500))))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_what_a_function_returns_is_passed_on():
    assert with_room_for_frames(lambda: 7) == 7
