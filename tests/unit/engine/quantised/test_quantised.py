"""Quantised checkpoints give the logits of the numbers that they stand for, or are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from rerank_service.config import Dtype, EngineConfig
from rerank_service.engine import Truncate, load_engine, loading
from rerank_service.engine.build import check_checkpoint
from rerank_service.engine.device.precision import allowed_precisions
from rerank_service.engine.linear.float8 import Float8Linear
from rerank_service.engine.quantised.scheme import read_scheme
from rerank_service.engine.quantised.tensors import QuantisedTensors
from rerank_service.errors import CheckpointError
from tests.models import NASTY_PASSAGES, local_model
from tests.quantise import FORMATS, quantise, quantise_weight

RECORDED = Path(__file__).with_name("recorded.safetensors")
QUERY = "what is the capital of France?"


def logits(folder: Path, **engine: Any) -> list[float]:
    loaded = load_engine(local_model(folder, engine=engine))
    scores: list[float] = loaded.score(loaded.tokenise(QUERY, NASTY_PASSAGES, Truncate.END))
    return scores


@pytest.mark.parametrize("form", FORMATS)
def test_logits_equal_those_of_the_dequantised_weights(form: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    quantised, plain = quantise(checkpoints["qwen3"], tmp_path, form)
    original = logits(checkpoints["qwen3"])

    assert logits(quantised) == logits(plain)  # to the last bit
    assert logits(quantised) != original
    assert logits(quantised) == pytest.approx(original, abs=2)  # int4 is coarse for random weights


@pytest.mark.parametrize("architecture", ["llama_bidirec", "bert", "xlm_roberta", "modernbert", "deberta_v2"])
@pytest.mark.parametrize("form", ["float8 by channel", "awq int4"])
def test_every_family_can_be_quantised(
    architecture: str, form: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    quantised, plain = quantise(checkpoints[architecture], tmp_path, form)
    assert logits(quantised) == logits(plain)


def config_of(form: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": FORMATS[form][0] | settings}


def group(**weights: Any) -> dict[str, Any]:
    config = FORMATS["packed int4"][0]["config_groups"]["group_0"]
    return {"config_groups": {"group_0": config | {"weights": config["weights"] | weights}}}


def tensors_of(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> QuantisedTensors:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    found = loading.quantised_tensors(folder)
    assert found is not None
    return found


with safe_open(RECORDED, framework="pt") as recorded:
    CONFIGS: dict[str, Any] = json.loads(recorded.metadata()["configs"])


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_equal_those_of_the_formats_own_packages(name: str, tmp_path: Path) -> None:
    parts = {key.partition("/")[2]: value for key, value in load_file(RECORDED).items() if key.startswith(f"{name}/")}
    expected = parts.pop("expected")
    stored = {f"layer.{part}": value for part, value in parts.items()}

    tensors = tensors_of(tmp_path, stored, {"quantization_config": CONFIGS[name]})

    assert list(tensors.names) == ["layer.weight"]
    assert tensors.shape("layer.weight") == tuple(expected.shape)
    assert torch.equal(tensors.read("layer.weight"), expected)


def test_blocks_of_fp8_equal_those_of_transformers(tmp_path: Path) -> None:
    weight = torch.randn(96, 80, generator=torch.Generator().manual_seed(0))
    parts, _ = quantise_weight(weight, "fp8 by block")
    expected = _dequantize_fp8_weight(parts["weight"], parts["weight_scale_inv"], [48, 40], torch.float32)

    tensors = tensors_of(tmp_path, {f"a.{part}": value for part, value in parts.items()}, config_of("fp8 by block"))

    assert torch.equal(tensors.read("a.weight"), expected)


def test_float8_layers_get_the_published_numbers_back() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    parts, expected = quantise_weight(weight, "float8 by channel")
    linear = torch.nn.Linear(128, 64, bias=False)
    with torch.no_grad():
        linear.weight.copy_(expected.bfloat16())  # the type in which weights are quantised again

    stored: Any = Float8Linear(linear)._weight

    assert torch.equal(stored.float(), parts["weight"].float())


@pytest.mark.parametrize("form", ["packed int4", "gptq int4", "awq int4", "float8 by block"])
def test_operations_are_counted_from_the_original_shapes(
    form: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    quantised, plain = quantise(checkpoints["qwen3"], tmp_path, form)
    assert loading.num_linear_weights(quantised) == loading.num_linear_weights(plain)
    assert loading.tensor_shapes(quantised) == loading.tensor_shapes(plain)


def test_a_quantised_vocabulary_gives_the_answers_rows(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    parts, expected = quantise_weight(torch.randn(48, 64), "awq int4")
    tensors = {f"lm_head.{part}": value for part, value in parts.items()}
    tensors_of(tmp_path, tensors | {"model.norm.weight": torch.ones(64)}, config_of("awq int4"))

    assert loading.has_tensor(tmp_path, "lm_head.weight")
    assert torch.equal(loading.read_rows(tmp_path, "lm_head.weight", 7), expected[7:8])
    assert torch.equal(loading.read_rows(tmp_path, "lm_head.weight"), expected)
    assert not loading.has_tensor(tmp_path, "score.weight")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float8"])
def test_quantised_layers_are_made_from_dequantised_weights_in_the_type_of_states(
    dtype: Any, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    quantised, plain = quantise(checkpoints["bert"], tmp_path, "float8 by channel")
    states = allowed_precisions(Dtype(dtype), torch.device("cpu"))[-1].states
    weights = {name: tensor.to(states) for name, tensor in load_file(plain / "model.safetensors").items()}
    save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(raw | {"dtype": str(states).removeprefix("torch.")}))

    assert logits(quantised, dtype=dtype) == logits(plain, dtype=dtype)


@pytest.mark.parametrize(
    ("config", "format_name"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "unknown"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt NVFP4"),
        ({"quant_method": "gptq", "bits": 3}, "GPTQ gptq with 3 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ marlin with 4 bits"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ gemv with 4 bits"),
        (FORMATS["packed int4"][0] | {"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        (FORMATS["packed int4"][0] | {"format": "marlin-24"}, "marlin-24"),
        (FORMATS["packed int4"][0] | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        (FORMATS["packed int4"][0] | {"transform_config": {"config_groups": {"R1": {}}}}, "rotations"),
        (FORMATS["packed int4"][0] | group(num_bits=3), "int with 3 bits"),
        (FORMATS["packed int4"][0] | group(type="float"), "float with 4 bits"),
        (FORMATS["packed int4"][0] | group(strategy="tensor_group"), "strategy tensor_group"),
        (FORMATS["packed int4"][0] | {"config_groups": {"W4A16": ["Linear"]}}, "presets"),
        (["fp8"], "malformed"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "malformed"),
    ],
)
def test_other_formats_are_refused_by_name(
    config: Any, format_name: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for path in checkpoints["qwen3"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"quantization_config": config}))

    for kind in ("auto", "yes_no_decoder"):  # a configured engine does not skip the check
        with pytest.raises(CheckpointError, match=r"is already quantised \(.*use the original weights") as caught:
            load_engine(local_model(tmp_path, engine={"kind": kind}))
        assert format_name in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(CheckpointError, match="is already quantised"):
        check_checkpoint(tmp_path, EngineConfig())


def drop_scales(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("q_proj.weight_scale")}


def shorten_scales(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[:-1].clone() if name.endswith("_scale") else tensor for name, tensor in tensors.items()}


def add_a_scale(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"model.norm.weight_scale": torch.ones(1)}


def keep(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (drop_scales, {}, "q_proj.weight of .* has numbers of type F8_E4M3, which do not fit its quantization_config"),
        (shorten_scales, {}, r"cannot be dequantised .* it has scales of shape"),
        (add_a_scale, {}, "model.norm.weight of .* has numbers of type F32, which do not fit"),
        (keep, {"quantization_config": None}, r"is quantised \(F8_E4M3\), but config.json has no quantization_config"),
        (keep, config_of("int8"), "has numbers of type F8_E4M3, which do not fit"),
        (keep, config_of("gptq int4"), "has numbers of type F8_E4M3, which do not fit"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    config: dict[str, Any],
    message: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
) -> None:
    quantised, _ = quantise(checkpoints["qwen3"], tmp_path, "float8 by channel")
    raw = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(raw | config))
    weights = quantised / "model.safetensors"
    save_file(change(load_file(weights)), weights)

    with pytest.raises(CheckpointError, match=message):
        load_engine(local_model(quantised))


def test_a_layer_that_is_missing_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    quantised, _ = quantise(checkpoints["qwen3"], tmp_path, "awq int4")
    weights = quantised / "model.safetensors"
    save_file(
        {name: one for name, one in load_file(weights).items() if "layers.1.self_attn.q_proj" not in name}, weights
    )

    with pytest.raises(CheckpointError, match=r"1 missing \(layers.1.self_attn.q_proj.weight"):
        load_engine(local_model(quantised))


def test_zero_points_that_overflow_in_gptqs_first_format_are_refused(tmp_path: Path) -> None:
    parts, _ = quantise_weight(torch.randn(32, 64), "gptq int4")
    parts["qzeros"] = torch.full_like(parts["qzeros"], -1)  # 0 minus 1
    tensors = tensors_of(tmp_path, {f"a.{part}": value for part, value in parts.items()}, config_of("gptq int4"))

    with pytest.raises(CheckpointError, match="has zero points of 0, which the format gptq cannot store"):
        tensors.read("a.weight")


def test_only_declared_checkpoints_are_quantised() -> None:
    assert read_scheme({"model_type": "bert"}) is None
    assert read_scheme({"quantization_config": None}) is None
    for config, _ in FORMATS.values():
        assert read_scheme({"quantization_config": config}) is not None
        assert read_scheme({"compression_config": config}) is not None  # an older name
