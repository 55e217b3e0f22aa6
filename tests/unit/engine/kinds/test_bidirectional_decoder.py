"""Compares the native loader with the published maths, which this file implements in plain torch."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaModel

from rerank_service.engine import Truncate, load_engine
from rerank_service.errors import PairTooLong
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.models import NASTY_PASSAGES, local_model

QUERY = "how much protein should a female eat?"
TOLERANCE = 2e-5


def reference_logits(folder: Path, passages: list[str], pooling: str = "avg", temperature: float = 1.0) -> list[float]:
    """Float32 logits of QUERY with each passage, computed one pair at a time."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # special tokens spelled in passages are text
    logits = []
    for passage in passages:
        ids = tokenizer.encode(f"question:{QUERY} \n \n passage:{passage}", add_special_tokens=False).ids
        ids = [config["bos_token_id"], *ids][: config["max_position_embeddings"]]
        states = reference_states(config, tensors, torch.tensor(ids))
        pooled = {
            "avg": states.mean(0),
            "weighted_avg": states.sum(0),
            "cls": states[0],
            "last": states[-1],
        }[pooling]
        score = tensors["score.weight"][0] @ pooled + tensors.get("score.bias", torch.zeros(1))[0]
        logits.append(float(score / temperature))
    return logits


def reference_states(config: dict[str, Any], tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Final states of Llama's and Mistral's layers, without a mask: `[L]` to `[L, H]`."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    angles = torch.outer(torch.arange(len(ids)).float(), rope_frequencies(config, head_dim))
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * tensors[name]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    x = tensors["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        h = norm(x, prefix + "input_layernorm.weight")
        q, k, v = (
            (h @ tensors[f"{prefix}self_attn.{part}_proj.weight"].T).view(len(ids), -1, head_dim).transpose(0, 1)
            for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        k, v = (part.repeat_interleave(heads // kv_heads, 0) for part in (k, v))
        weights = (q @ k.transpose(1, 2) / math.sqrt(head_dim)).softmax(-1)
        attended = (weights @ v).transpose(0, 1).reshape(len(ids), -1)
        x = x + attended @ tensors[prefix + "self_attn.o_proj.weight"].T
        h = norm(x, prefix + "post_attention_layernorm.weight")
        gate, up = (h @ tensors[f"{prefix}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ tensors[prefix + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight")


def rope_frequencies(config: dict[str, Any], head_dim: int) -> torch.Tensor:
    """Rotary frequencies `[D/2]`. Llama 3 lowers low frequencies and blends the middle ones (see its model card)."""
    frequencies = 1.0 / config["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
    scaling = config.get("rope_scaling")
    if not scaling:
        return frequencies
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = (turns - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
    blend = blend.clamp(0, 1)
    return frequencies * blend + frequencies / scaling["factor"] * (1 - blend)


@pytest.mark.parametrize("architecture", ["llama_bidirec", "mistral"])
def test_native_loader_equals_the_published_maths(checkpoints: dict[str, Path], architecture: str) -> None:
    folder = checkpoints[architecture]
    engine = load_engine(local_model(folder))

    logits = engine.score(engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END))

    assert logits == pytest.approx(reference_logits(folder, NASTY_PASSAGES), abs=TOLERANCE)


@pytest.mark.parametrize("pooling", ["avg", "weighted_avg", "cls", "last"])
def test_pooling_and_temperature_can_be_overridden(checkpoints: dict[str, Path], pooling: str) -> None:
    folder = checkpoints["llama_bidirec"]
    engine = load_engine(local_model(folder, engine={"pooling": pooling, "temperature": 0.5}))

    logits = engine.score(engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END))

    expected = reference_logits(folder, NASTY_PASSAGES, pooling, temperature=0.5)
    assert logits == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_pooling_and_temperature_come_from_the_checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(checkpoints["llama_bidirec"], tmp_path, pooling="last", temperature=4.0)
    engine = load_engine(local_model(folder))

    logits = engine.score(engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END))

    assert logits == pytest.approx(reference_logits(folder, NASTY_PASSAGES, "last", 4.0), abs=TOLERANCE)


def test_head_with_a_bias(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "biased", Architecture.MISTRAL, "tiny", dtype="float32", head_bias=True)
    engine = load_engine(local_model(folder))

    assert "score.bias" in load_file(folder / "model.safetensors")
    logits = engine.score(engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END))
    assert logits == pytest.approx(reference_logits(folder, NASTY_PASSAGES), abs=TOLERANCE)


def test_logits_differ_from_those_with_causal_attention(checkpoints: dict[str, Path]) -> None:
    """Guards against transformers silently ignoring `is_causal = False`, as happened with the remote code."""
    folder = checkpoints["llama_bidirec"]
    raw = json.loads((folder / "config.json").read_text())
    keep = {key: raw[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    keep |= {key: raw[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")}
    keep |= {key: raw[key] for key in ("rope_theta", "rope_scaling", "max_position_embeddings")}
    causal = LlamaModel(LlamaConfig(**keep)).eval()
    tensors = load_file(folder / "model.safetensors")
    causal.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name != "score.weight"})
    engine = load_engine(local_model(folder))
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)

    with torch.inference_mode():
        causal_logits = [
            float(
                causal(torch.tensor(pair.token_ids)[None].long()).last_hidden_state[0].mean(0)
                @ tensors["score.weight"][0]
            )
            for pair in pairs
        ]

    differences = [abs(a - b) for a, b in zip(causal_logits, engine.score(pairs), strict=True)]
    assert min(differences) > 100 * TOLERANCE


@pytest.mark.parametrize("architecture", ["llama_bidirec", "mistral"])
def test_a_logit_does_not_depend_on_its_batch(checkpoints: dict[str, Path], architecture: str) -> None:
    engine = load_engine(local_model(checkpoints[architecture]))
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)

    alone = [engine.score([pair])[0] for pair in pairs]

    assert engine.score(pairs) == pytest.approx(alone, abs=2e-6)
    assert engine.score(pairs[::-1]) == pytest.approx(alone[::-1], abs=2e-6)


def test_the_template_is_tokenised_as_a_whole_after_one_bos(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["llama_bidirec"]
    engine = load_engine(local_model(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    (pair,) = engine.tokenise("how?", ["so {query}"], Truncate.END)

    assert pair.token_ids.tolist() == tokenizer.encode("question:how? \n \n passage:so {query}").ids
    assert pair.token_ids[0] == tokenizer.token_to_id("<|begin_of_text|>")
    assert tokenizer.token_to_id("<|end_of_text|>") not in pair.token_ids
    assert pair.num_tokens == len(pair.token_ids)


def test_a_configured_template(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["llama_bidirec"]
    engine = load_engine(local_model(folder, engine={"prompt_template": "{passage} | {query}"}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    (pair,) = engine.tokenise("q", ["p"], Truncate.END)

    assert pair.token_ids.tolist() == tokenizer.encode("p | q").ids


def test_truncation_cuts_the_end_of_the_passage(checkpoints: dict[str, Path]) -> None:
    window = 24
    engine = load_engine(local_model(checkpoints["llama_bidirec"], window_tokens=window))
    whole = load_engine(local_model(checkpoints["llama_bidirec"]))
    passage = "one two three four five six seven eight nine ten " * 5

    (cut,) = engine.tokenise("q", [passage], Truncate.END)
    (full,) = whole.tokenise("q", [passage], Truncate.END)

    assert cut.token_ids.tolist() == full.token_ids[:window].tolist()
    assert (cut.num_tokens, cut.is_truncated, full.is_truncated) == (window, True, False)


def test_the_window_is_exact_to_one_token(checkpoints: dict[str, Path]) -> None:
    folder, query, passage = checkpoints["llama_bidirec"], "q", "one two three four five six seven eight"
    (whole,) = load_engine(local_model(folder)).tokenise(query, [passage], Truncate.END)
    exact = load_engine(local_model(folder, window_tokens=whole.num_tokens))
    shorter = load_engine(local_model(folder, window_tokens=whole.num_tokens - 1))

    (fitting,) = exact.tokenise(query, [passage], Truncate.NONE)
    assert (fitting.token_ids.tolist(), fitting.is_truncated) == (whole.token_ids.tolist(), False)
    (cut,) = shorter.tokenise(query, [passage], Truncate.END)
    assert (cut.token_ids.tolist(), cut.is_truncated) == (whole.token_ids.tolist()[:-1], True)
    with pytest.raises(PairTooLong) as caught:
        shorter.tokenise(query, [passage], Truncate.NONE)
    assert (caught.value.num_tokens, caught.value.max_tokens) == (whole.num_tokens, whole.num_tokens - 1)


def test_truncate_none_refuses_with_the_length_and_the_window(checkpoints: dict[str, Path]) -> None:
    engine = load_engine(local_model(checkpoints["llama_bidirec"], window_tokens=24))

    with pytest.raises(PairTooLong, match=r"Input length \d+ exceeds maximum allowed token size 24") as caught:
        engine.tokenise("q", ["short", "long " * 50], Truncate.NONE)

    assert caught.value.index == 1


def test_bfloat16_stays_close_to_float32(checkpoints: dict[str, Path]) -> None:
    exact = load_engine(local_model(checkpoints["llama_bidirec"]))
    coarse = load_engine(local_model(checkpoints["llama_bidirec"], engine={"dtype": "bfloat16"}))
    pairs = exact.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)

    assert coarse.score(pairs) == pytest.approx(exact.score(pairs), abs=0.15)


def _copy(source: Path, target: Path, **changes: Any) -> Path:
    """Copies a checkpoint and changes values in the copy's config.json."""
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_missing_and_unexpected_tensors_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from rerank_service.errors import CheckpointError

    folder = _copy(checkpoints["llama_bidirec"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    weights = folder / "model.safetensors"

    save_file({k: v for k, v in tensors.items() if k != "score.weight"}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing \(score\.weight"):
        load_engine(local_model(folder))

    save_file(tensors | {"lm_head.weight": torch.zeros(2, 2)}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unexpected \(lm_head\.weight"):
        load_engine(local_model(folder))

    save_file(tensors | {"score.weight": torch.zeros(3, 64)}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        load_engine(local_model(folder))
