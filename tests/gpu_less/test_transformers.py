"""The arguments that released versions of transformers pass to attention and mask functions, and the masks themselves.

`python -m tests.gpu_less.test_transformers FOLDER` records the installed version and leaves random checkpoints in
FOLDER. To record a version that is not installed, unpack its wheel and put the folder in PYTHONPATH.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from transformers import AttentionMaskInterface, AutoModelForSequenceClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rerank_service.engine import load_engine
from rerank_service.engine.device import forward
from rerank_service.engine.device.forward import PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION, PADDED_ATTENTION
from rerank_service.engine.device.relative_positions import tabulate_relative_positions
from rerank_service.engine.linear import joined
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.gpu_less.releases import FOLDER, TRANSFORMERS_RELEASES
from tests.models import local_model

NAMES = (PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION, PADDED_ATTENTION)


@contextmanager
def recorded(calls: dict[str, Any]) -> Iterator[None]:
    """Adds the names of the arguments of each attention and mask function to `calls` while the block runs."""

    def spy(kind: str, function: Any, *args: Any, **options: Any) -> Any:
        calls[kind] = {"positional": len(args), "names": sorted(options)}
        return function(*args, **options)

    mask = AttentionMaskInterface()[PADDED_ATTENTION]
    functions = {name: ALL_ATTENTION_FUNCTIONS[name] for name in NAMES}
    for name, function in functions.items():
        ALL_ATTENTION_FUNCTIONS[name] = partial(spy, "attention", function)
    AttentionMaskInterface.register(PADDED_ATTENTION, partial(spy, "mask", mask))
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.update(functions)
        AttentionMaskInterface.register(PADDED_ATTENTION, mask)


def calls_of(folder: Path) -> dict[str, Any]:
    """The calls of one pass of the model in `folder`, without our joined attention: transformers' own calls."""
    calls: dict[str, Any] = {}
    with patch.object(joined, "_JOINED", {}):
        engine: Any = load_engine(local_model(folder))
    if folder.name == "modernbert":
        engine.backbone.set_attn_implementation(PADDED_ATTENTION)
    with recorded(calls):
        engine.score(engine.tokenise("a question", ["a passage"], "END"))
    return calls


def test_the_installed_transformers_is_recorded(checkpoints: dict[str, Path]) -> None:
    minor = transformers.__version__.rpartition(".")[0]
    release = next((r for r in TRANSFORMERS_RELEASES if r.rpartition(".")[0] == minor), None)
    assert release is not None, f"record transformers {transformers.__version__}"
    for name, calls in TRANSFORMERS_RELEASES[release].items():
        assert calls_of(checkpoints[name]) == calls, name


@pytest.mark.parametrize("release", TRANSFORMERS_RELEASES)
def test_every_recorded_call_is_accepted(release: str) -> None:
    """The arguments that our functions name may not be passed under another name."""
    for calls in TRANSFORMERS_RELEASES[release].values():
        for kind, function in (("attention", forward.packed_attention), ("mask", forward._padded_mask)):
            if kind in calls:
                call = calls[kind]
                inspect.signature(function).bind(*range(call["positional"]), **dict.fromkeys(call["names"]))
                assert {"scaling"} <= set(call["names"]) or kind == "mask"


@pytest.mark.parametrize("lengths", [(7, 7), (7, 3), (40, 12)], ids=["equal", "padded", "beyond the local window"])
def test_masks_from_the_device_equal_those_of_transformers(
    checkpoints: dict[str, Path], lengths: tuple[int, ...]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["modernbert"]).eval()
    tokens = torch.arange(5, 5 + max(lengths)).repeat(len(lengths), 1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    with torch.inference_mode():
        expected = model(input_ids=tokens, attention_mask=mask).logits
        model.set_attn_implementation(PADDED_ATTENTION)
        torch.testing.assert_close(model(input_ids=tokens, attention_mask=mask).logits, expected, atol=1e-5, rtol=0)
        if len(set(lengths)) == 1:
            torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_tokens", [1, 2, 33, 512])
def test_tabulated_positions_equal_those_of_transformers(checkpoints: dict[str, Path], num_tokens: int) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["deberta_v2"])
    states = torch.zeros(2, num_tokens, 8)
    expected = model.base_model.encoder.get_rel_pos(states)
    tabulate_relative_positions(model.base_model, 512)
    assert torch.equal(model.base_model.encoder.get_rel_pos(states), expected)


def record(root: Path) -> None:
    calls = {}
    for architecture in (a for a in Architecture if a is not Architecture.DEBERTA_V2):  # it has its own attention
        folder = make_checkpoint(root / architecture.value, architecture, "tiny", dtype="float32", overwrite=True)
        calls[architecture.value] = calls_of(folder)
    (FOLDER / f"transformers-{transformers.__version__}.json").write_text(json.dumps(calls, indent=1) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
