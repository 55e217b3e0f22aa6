"""What belongs to CUDA is in `engine/device`, so that another kind of accelerator needs no change elsewhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[4] / "rerank_service"
DEVICE = PACKAGE / "engine/device"
MODULES = ("torch.cuda", "torch.backends.cuda", "torch.backends.cudnn", "triton")


def uses_of_cuda(source: str) -> Iterator[str]:
    """Names of CUDA's modules, and decisions that ask for CUDA rather than for the CPU."""
    for node in ast.walk(ast.parse(source)):
        found = False
        match node:
            case ast.Attribute(attr="is_cuda" | "is_hip" | "is_xpu"):
                found = True
            case ast.Attribute() as attribute:
                found = ast.unparse(attribute) in MODULES
            case ast.Import(names=names):
                found = any(name.name.startswith(MODULES) for name in names)
            case ast.ImportFrom(module=str(module)):
                found = module.startswith(MODULES) or (module == "torch" and any(n.name == "cuda" for n in node.names))
            case ast.Compare(left=left, comparators=others):
                values = [one.value for one in (left, *others) if isinstance(one, ast.Constant)]
                found = any(isinstance(value, str) and value.startswith(("cuda", "xpu", "hip")) for value in values)
        if found:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "source",
    [
        "torch.cuda.empty_cache()",
        "emulated = None if weight.is_cuda else weight",
        'if device.type == "cuda": ...',
        "from torch import cuda",
        "import triton.language",
        "torch.backends.cuda.matmul.allow_tf32 = True",
    ],
)
def test_the_check_finds_uses(source: str) -> None:
    assert list(uses_of_cuda(source))


def test_asking_for_a_cpu_is_no_use() -> None:
    assert not list(uses_of_cuda('if device.type == "cpu": cuda.release_unused_memory()'))


def test_only_the_device_code_uses_cuda() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}, {use}"
        for path in PACKAGE.rglob("*.py")
        if DEVICE not in path.parents
        for use in uses_of_cuda(path.read_text())
    ]
    assert found == []
