"""Measures the engines on one GPU beside the limit of the chip: rows as they come, a JSON file, and a table.

    python -m benchmarks.gpu --prepare                                  # once, where there is a network
    python -m benchmarks.gpu --models 1b --json $OUT/gpu-1b.json        # on the GPU; under five minutes
    python -m benchmarks.gpu --models 4b --json $OUT/gpu-4b.json        # under eight minutes

On the GPU machine, the benchmark needs torch, transformers and the packages brought by `--prepare`, but no network, no
Ray and no installation. It writes random checkpoints with the published shapes of the 1B and the 4B (10 GB) and keeps
them in an ignored folder of the checkout for later calls. MFU is the rate of floating-point operations of the forward
pass, divided by the rate in a large bfloat16 matrix product of the same run. The limit of a row is the time of its
operations at the rates of large products: in a float8 row, linear layers at the float8 rate. The column "ran as" is
read from torch after the run: it says neither "graphs" nor "compiled" if they were off. Rows that do not fit in the
time budget are skipped, the least important first, and listed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, without an installation

from benchmarks.on_gpu.packages import FOLDER, prepare, use_packages


def main() -> None:
    """Prepares or measures."""
    options = _parse_options()
    if options.prepare:
        folder = prepare()
        print(f"packages in {folder}; the device tool takes them along with carry: {FOLDER}")
        return
    use_packages()
    try:
        from benchmarks.on_gpu.session import bench
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: run `python -m benchmarks.gpu --prepare` where there is a network, and bring {FOLDER}")
    bench(options)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="download the packages that a GPU machine lacks")
    parser.add_argument("--models", "--sizes", default="1b,4b", help="1b, 4b, small, tiny, separated by commas")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--queue-tokens", type=int, default=262_144, help="tokens of a full queue")
    parser.add_argument("--passages", type=int, default=100, help="passages of one request")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget-s", type=float, help="seconds for each model; default 270 (1b) and 450 (4b)")
    parser.add_argument("--checkpoints", type=Path, default=Path(__file__).parents[1] / ".bench" / "checkpoints")
    parser.add_argument("--json", type=Path, help="file for the rows, replaced whole after each row")
    parser.add_argument("--commit", help="commit to record, if the checkout on the GPU machine has no git repository")
    return parser.parse_args()


if __name__ == "__main__":
    main()
