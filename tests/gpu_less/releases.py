"""Signatures of torch's kernels and calls of transformers, recorded from released wheels in `releases/`.

To record a release of torch, unpack its wheel, for any platform, and give its version and the folder:
`python -m tests.gpu_less.releases 2.12.1 FOLDER`. `test_transformers.py` records transformers.
"""

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.gpu_less.operators import attend

__all__ = ["TORCH_RELEASES", "TRANSFORMERS_RELEASES", "varlen_attn_of"]

FOLDER = Path(__file__).with_name("releases")


def _read(library: str) -> dict[str, Any]:
    paths = sorted(FOLDER.glob(f"{library}-*.json"))
    return {path.stem.removeprefix(f"{library}-"): json.loads(path.read_text()) for path in paths}


TORCH_RELEASES = _read("torch")
"""By version: the parameters of `varlen_attn` (name, kind, default) and the schema of `_scaled_mm`."""
TRANSFORMERS_RELEASES = _read("transformers")
"""By version and model class: the arguments that the model passes to its attention and to its mask function."""


def varlen_attn_of(release: str) -> Callable[..., Any]:
    """A function with the parameters that `varlen_attn` has in this release of torch, and no others. It computes on the
    software GPU, and refuses what the kernel refuses."""
    recorded = TORCH_RELEASES[release]["varlen_attn"]
    parameters = [
        inspect.Parameter(
            parameter["name"],
            inspect._ParameterKind[parameter["kind"]],
            default=ast.literal_eval(parameter["default"]) if "default" in parameter else inspect.Parameter.empty,
        )
        for parameter in recorded
    ]
    names = ", ".join(f"{parameter.name}={parameter.name}" for parameter in parameters)
    namespace: dict[str, Any] = {"run": _run}
    # A function of one's own, and not `bind` in a function with `**options`, because torch compiles this code.
    exec(f"def varlen_attn{inspect.Signature(parameters)}:\n    return run({names})", namespace)  # noqa: S102
    stub: Callable[..., Any] = namespace["varlen_attn"]
    return stub


def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    return_aux: Any,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool = True,  # torch 2.11 has none of these, and behaves as with these values
    num_splits: int | None = 1,
    seqused_k: None = None,
    block_table: None = None,
) -> torch.Tensor:
    if not enable_gqa and query.size(1) != key.size(1):
        raise ValueError("Expect query and key/value to have the same number of heads. Try setting enable_gqa=True")
    assert num_splits == 1, "without num_splits=1, a logit depends on the other pairs of its batch"
    assert return_aux is seqused_k is block_table is None
    assert cu_seq_q is cu_seq_k
    assert max_q == max_k
    out: torch.Tensor = attend(query, key, value, cu_seq_q, max_q, scale, *window_size)
    return out


def _parameters(source: str) -> list[dict[str, str]]:
    """The parameters of `varlen_attn` in torch's source."""
    (function,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "varlen_attn"
    )
    given = function.args
    missing = len(given.args) - len(given.defaults)
    listed = [("POSITIONAL_OR_KEYWORD", arg, None) for arg in given.args[:missing]]
    listed += [("POSITIONAL_OR_KEYWORD", *pair) for pair in zip(given.args[missing:], given.defaults, strict=True)]
    listed += [("KEYWORD_ONLY", *pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [
        {"name": arg.arg, "kind": kind, **({} if default is None else {"default": ast.unparse(default)})}
        for kind, arg, default in listed
    ]


def record_torch(version: str, wheel: Path) -> None:
    operators = (wheel / "torchgen/packaged/ATen/native/native_functions.yaml").read_text()
    (schema,) = re.findall(r"^- func: (_scaled_mm\(.*)$", operators, re.MULTILINE)
    varlen = (wheel / "torch/nn/attention/varlen.py").read_text()
    record = {"varlen_attn": _parameters(varlen), "_scaled_mm": f"aten::{schema}"}
    (FOLDER / f"torch-{version}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    record_torch(sys.argv[1], Path(sys.argv[2]))
