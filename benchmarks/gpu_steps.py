"""The first thirty minutes on a GPU, step by step: one command for each question, each within a ten-minute call.

    python -m benchmarks.gpu --prepare                    # once, where there is a network
    python -m benchmarks.gpu_steps products               # float8 products of every height, against float32
    python -m benchmarks.gpu_steps attention              # the attention kernel, against float32
    python -m benchmarks.gpu_steps waits                  # every engine with torch's synchronization errors on
    python -m benchmarks.gpu_steps graphs --model 1b      # every graph on batches that it has not captured
    python -m benchmarks.gpu --models 1b                  # then 4b in a call of its own (benchmarks/gpu.py)
    python -m benchmarks.gpu_steps profile --model 1b     # kernels and launches of a layer, eager and compiled
    python -m benchmarks.gpu_steps gaps --model 1b        # idle time of the device with two batches in flight
    python -m benchmarks.gpu_steps buckets --model 1b     # up to which size graphs pay off
    python -m benchmarks.gpu_steps memory --model 1b      # a batch that does not fit is halved
    python -m benchmarks.gpu_steps lost                   # last: a device assert makes the engine report a lost device

Several steps may follow each other: `products attention waits`. Each check prints one line that starts with "ok" or
"FAIL"; the exit code is 1 if any failed. On the GPU machine, the steps need the same as benchmarks/gpu.py.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, without an installation

from benchmarks.on_gpu.packages import FOLDER, use_packages

STEPS = ("products", "attention", "waits", "graphs", "profile", "gaps", "buckets", "memory", "lost")


def main() -> int:
    """Runs the chosen steps, and returns the exit code."""
    options = _parse_options()
    use_packages()
    try:
        from benchmarks.on_gpu import engine_steps, kernel_steps, timing_steps
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: run `python -m benchmarks.gpu --prepare` where there is a network, and bring {FOLDER}")
    functions = {**kernel_steps.STEPS, **engine_steps.STEPS, **timing_steps.STEPS}
    num_failed = 0
    for name in options.steps:
        started = time.perf_counter()
        for line in functions[name](options):
            print(line, flush=True)
            num_failed += line.startswith("FAIL")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if num_failed else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=STEPS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--model", default="small", help="1b, 4b, small or tiny")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--checkpoints", type=Path, default=Path(__file__).parents[1] / ".bench" / "checkpoints")
    parser.add_argument("--out", type=Path, default=Path(".bench"), help="folder for the tables of `profile`")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
