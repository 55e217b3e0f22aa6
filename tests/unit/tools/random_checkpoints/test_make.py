from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from rerank_service.tools.cli.make_checkpoint import make_checkpoint_command
from rerank_service.tools.random_checkpoints import make
from rerank_service.tools.random_checkpoints.make import Architecture, count_parameters, make_checkpoint

ARCHITECTURES = list(Architecture)
ENCODERS = [architecture for architecture in Architecture if architecture.is_encoder]
NATIVE_ENCODERS = [architecture for architecture in ENCODERS if architecture is not Architecture.GTE]
"""Encoders that transformers loads from their own config.json."""
DECODERS = [Architecture.LLAMA_BIDIREC, Architecture.MISTRAL]
NATIVE: dict[Architecture, tuple[Any, Any]] = {
    Architecture.LLAMA_BIDIREC: (LlamaConfig, LlamaForSequenceClassification),
    Architecture.MISTRAL: (MistralConfig, MistralForSequenceClassification),
}
NOT_NATIVE = {"architectures", "auto_map", "model_type", "pooling", "temperature", "transformers_version"}
FILES = {
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
NASTY_TEXTS = [
    "question:how much? \n \n passage:It's 46 grams,\r\n\tI'VE read.",
    "東京の首都、龘靐齉；서울…",
    "🙂👩🏽‍🔬🇪🇺 ☃ \U0001f9ff",
    "العربية עברית ไทย ꙮ 𝔘𝔫𝔦 \u200b\u0301\x00\x07",
    "def f(x):\n    return x ** 2  # 1234567890",
    "   ",
    "",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[Architecture, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {each: make_checkpoint(root / each, each, "tiny") for each in Architecture}


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def read_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_decoder(folder: Path, architecture: Architecture, **changes: Any) -> tuple[Any, dict[str, Any]]:
    config_class, model_class = NATIVE[architecture]
    settings = {key: value for key, value in read_config(folder).items() if key not in NOT_NATIVE}
    config = config_class(**settings | changes)
    config.is_causal = changes.get("is_causal", False)
    model, info = model_class.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    return model.eval(), info


@torch.no_grad()
def score_averaged(model: Any, token_ids: list[int]) -> float:
    states = model.model(torch.tensor([token_ids])).last_hidden_state  # [1, T, H]
    return float(model.score(states.mean(dim=1)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_has_exactly_the_published_files(
    tiny: dict[Architecture, Path], architecture: Architecture
) -> None:
    folder = tiny[architecture]
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}


def test_llama_bidirec_config_is_written_as_published(tiny: dict[Architecture, Path]) -> None:
    config = read_config(tiny[Architecture.LLAMA_BIDIREC])
    assert config["model_type"] == "llama_bidirec"
    assert config["architectures"] == ["LlamaBidirectionalForSequenceClassification"]
    assert config["auto_map"] == {
        "AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig",
        "AutoModelForSequenceClassification": "llama_bidirectional_model.LlamaBidirectionalForSequenceClassification",
    }
    assert (config["pooling"], config["temperature"], config["id2label"]) == ("avg", 1.0, {"0": "LABEL_0"})
    assert (config["rope_theta"], config["torch_dtype"], config["tie_word_embeddings"]) == (
        500000.0,
        "bfloat16",
        True,
    )
    assert config["rope_scaling"] == {
        "factor": 16.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    }


def test_mistral_config_is_written_as_published(tiny: dict[Architecture, Path]) -> None:
    config = read_config(tiny[Architecture.MISTRAL])
    assert config["model_type"] == "mistral"
    assert config["architectures"] == ["MistralForSequenceClassification"]
    assert (config["sliding_window"], config["rope_theta"], config["rms_norm_eps"]) == (4096, 10000.0, 1e-5)
    assert config["id2label"] == {"0": "LABEL_0"}
    assert not {"pooling", "temperature", "auto_map"} & config.keys()


def test_qwen3_config_is_written_as_published(tiny: dict[Architecture, Path]) -> None:
    config = read_config(tiny[Architecture.QWEN3])
    assert config["model_type"] == "qwen3"
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (config["rope_theta"], config["rms_norm_eps"], config["head_dim"]) == (1000000, 1e-6, 32)
    assert config["tie_word_embeddings"] is True
    assert not {"id2label", "pooling", "auto_map"} & config.keys()
    tensors = load_file(tiny[Architecture.QWEN3] / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors["model.layers.0.self_attn.q_norm.weight"].shape == (32,)


@pytest.mark.parametrize("word", ["yes", "no"])
def test_each_answer_of_qwen3_is_one_token(tiny: dict[Architecture, Path], word: str) -> None:
    assert read_tokenizer(tiny[Architecture.QWEN3]).encode(word).tokens == [word]


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_decoders_have_exactly_the_published_tensors(tmp_path: Path, architecture: Architecture, size: str) -> None:
    folder = make_checkpoint(tmp_path / "made", architecture, size)
    config = read_config(folder)
    layer = [
        "input_layernorm",
        "mlp.down_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "post_attention_layernorm",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]
    expected = {"model.embed_tokens.weight", "model.norm.weight", "score.weight"}
    for index, part in itertools.product(range(config["num_hidden_layers"]), layer):
        expected.add(f"model.layers.{index}.{part}.weight")
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == expected
    assert tensors["score.weight"].shape == (1, config["hidden_size"])
    assert tensors["model.embed_tokens.weight"].shape[0] == read_tokenizer(folder).get_vocab_size()


def test_the_head_bias_of_mistral_is_optional(tmp_path: Path, tiny: dict[Architecture, Path]) -> None:
    folder = make_checkpoint(tmp_path / "biased", Architecture.MISTRAL, "tiny", head_bias=True)
    plain = load_file(tiny[Architecture.MISTRAL] / "model.safetensors")
    biased = load_file(folder / "model.safetensors")
    assert biased.keys() - plain.keys() == {"score.bias"}
    assert biased["score.bias"].shape == (1,)
    assert biased["score.bias"].item() != 0.0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_same_seed_produces_the_same_bytes(
    tmp_path: Path, architecture: Architecture, dtype: make.DTypeName
) -> None:
    first, again, other = (
        make_checkpoint(tmp_path / name, architecture, "tiny", seed=seed, dtype=dtype)
        for name, seed in [("first", 7), ("again", 7), ("other", 8)]
    )
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    changed = {path.name for path in first.iterdir() if path.read_bytes() != (other / path.name).read_bytes()}
    assert changed == {"model.safetensors"}


def test_bfloat16_weights_are_rounded_float32_weights(tmp_path: Path, tiny: dict[Architecture, Path]) -> None:
    folder = make_checkpoint(tmp_path / "exact", Architecture.LLAMA_BIDIREC, "tiny", dtype="float32")
    exact = load_file(folder / "model.safetensors")
    for name, rounded in load_file(tiny[Architecture.LLAMA_BIDIREC] / "model.safetensors").items():
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact[name], rtol=2**-7, atol=0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_tensor_is_constant_or_equal_to_another(tiny: dict[Architecture, Path], architecture: Architecture) -> None:
    tensors = load_file(tiny[architecture] / "model.safetensors")
    assert [name for name, each in tensors.items() if each.numel() > 1 and each.std() == 0] == []
    for first, second in itertools.combinations(tensors.values(), 2):
        assert not torch.equal(first, second)


@pytest.mark.parametrize("architecture", DECODERS)
def test_decoders_load_in_the_native_class_without_remote_code(
    tiny: dict[Architecture, Path], architecture: Architecture
) -> None:
    _, info = load_decoder(tiny[architecture], architecture)
    assert not any(info.values()), info


@pytest.mark.parametrize("architecture", NATIVE_ENCODERS)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_encoders_load_without_missing_or_unexpected_keys(
    tmp_path: Path, architecture: Architecture, size: str
) -> None:
    folder = make_checkpoint(tmp_path / "made", architecture, size)
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.parametrize("architecture", NATIVE_ENCODERS)
def test_encoders_score_a_pair_that_fills_the_window(
    tiny: dict[Architecture, Path], architecture: Architecture
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny[architecture], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny[architecture])
    window = tokenizer.model_max_length
    passages = ["short", "long " * window]
    tokens = tokenizer(["a query"] * 2, passages, padding=True, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (2, window)
    with torch.no_grad():
        logits = model.eval()(**tokens).logits
    assert logits.shape == (2, 1)
    assert logits.isfinite().all()


def test_a_causal_mask_or_an_unscaled_rotation_changes_the_logit(tiny: dict[Architecture, Path]) -> None:
    architecture = Architecture.LLAMA_BIDIREC
    folder = tiny[architecture]
    texts = ["The kidney filters blood.", "The bank raised the rate.", "def f(x): return x"]
    ids = [read_tokenizer(folder).encode(f"question:how much? \n \n passage:{text}").ids for text in texts]

    def logits(**changes: Any) -> torch.Tensor:
        model, _ = load_decoder(folder, architecture, **changes)
        return torch.tensor([score_averaged(model, each) for each in ids])

    right = logits()
    assert right.std() > 0.3
    assert (logits(is_causal=True) - right).abs().max() > 0.3
    assert (logits(rope_scaling=None) - right).abs().max() > 0.03


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_every_text_can_be_decoded_and_has_no_unknown_token(
    tiny: dict[Architecture, Path], architecture: Architecture, text: str
) -> None:
    tokenizer = read_tokenizer(tiny[architecture])
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    assert not {"[UNK]", "<unk>"} & set(encoding.tokens)
    transformers_ids = PreTrainedTokenizerFast.from_pretrained(tiny[architecture])(text)["input_ids"]
    assert transformers_ids == encoding.ids


@pytest.mark.parametrize(
    ("architecture", "single", "pair", "type_ids"),
    [
        (Architecture.LLAMA_BIDIREC, "BOS a", "BOS a BOS b", [0, 0, 1, 1]),
        (Architecture.MISTRAL, "BOS a", "BOS a BOS b", [0, 0, 1, 1]),
        (Architecture.BERT, "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]", [0, 0, 0, 1, 1]),
        (Architecture.XLM_ROBERTA, "<s> a </s>", "<s> a </s> </s> b </s>", [0] * 6),
        (Architecture.MODERNBERT, "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]", [0] * 5),
        (Architecture.DEBERTA_V2, "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]", [0, 0, 0, 1, 1]),
        (Architecture.QWEN3, "a", "a b", [0, 0]),
    ],
)
def test_special_tokens_have_the_positions_of_the_family(
    tiny: dict[Architecture, Path], architecture: Architecture, single: str, pair: str, type_ids: list[int]
) -> None:
    tokenizer = read_tokenizer(tiny[architecture])
    assert tokenizer.encode("a").tokens == single.replace("BOS", "<|begin_of_text|>").split()
    encoding = tokenizer.encode("a", "b")
    assert encoding.tokens == pair.replace("BOS", "<|begin_of_text|>").split()
    assert encoding.type_ids == type_ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_and_tokenizer_agree_on_special_ids(tiny: dict[Architecture, Path], architecture: Architecture) -> None:
    config = read_config(tiny[architecture])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny[architecture])
    for name in ["bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"]:
        is_named_twice = architecture is Architecture.MODERNBERT and name in {"bos_token_id", "eos_token_id"}
        if not is_named_twice and (architecture, name) != (Architecture.QWEN3, "bos_token_id"):
            assert config.get(name) in {None, getattr(tokenizer, name)}
    if architecture in {*DECODERS, Architecture.XLM_ROBERTA}:
        assert (config["bos_token_id"], config["eos_token_id"]) == (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        )
    if architecture is Architecture.XLM_ROBERTA:
        assert config["pad_token_id"] == 1


@pytest.mark.parametrize("architecture", ENCODERS)
def test_auto_tokenizer_agrees_with_the_file_on_a_pair(
    tiny: dict[Architecture, Path], architecture: Architecture
) -> None:
    pair = AutoTokenizer.from_pretrained(tiny[architecture])("wie groß?", "東京 🙂")
    encoding = read_tokenizer(tiny[architecture]).encode("wie groß?", "東京 🙂")
    assert pair["input_ids"] == encoding.ids
    assert pair.get("token_type_ids", [0] * len(encoding.ids)) == encoding.type_ids


@pytest.mark.parametrize(
    ("architecture", "size", "expected"),
    [
        # embedding 128256 x 2048 + 16 layers of 60,821,504 + final norm 2048 + score 2048
        (Architecture.LLAMA_BIDIREC, "1b", 1_235_816_448),
        # embedding 32000 x 4096 + 16 layers of 218,112,000 + final norm 4096 + score 4096
        (Architecture.MISTRAL, "4b", 3_620_872_192),
        # as listed in embeddings-benchmark/mteb, from the published files
        (Architecture.QWEN3, "0.6b", 595_776_512),
        (Architecture.QWEN3, "4b", 4_021_784_576),
        (Architecture.QWEN3, "8b", 8_188_548_096),
    ],
)
def test_real_sizes_have_the_published_number_of_parameters(
    architecture: Architecture, size: str, expected: int
) -> None:
    assert count_parameters(architecture, size) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counted_parameters_equal_those_in_the_files(
    tiny: dict[Architecture, Path], architecture: Architecture
) -> None:
    tensors = load_file(tiny[architecture] / "model.safetensors")
    assert count_parameters(architecture, "tiny") == sum(each.numel() for each in tensors.values())


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (Architecture.LLAMA_BIDIREC, {"size": "4b"}, "llama_bidirec has no size '4b'.*tiny, small, 1b"),
        (Architecture.MISTRAL, {"size": "1b"}, "mistral has no size '1b'.*tiny, small, 4b"),
        (Architecture.BERT, {"size": "1b"}, "bert has no size '1b'.*tiny, small"),
        (Architecture.BERT, {"size": "tiny", "head_bias": True}, "bert has no optional head bias.*mistral"),
        (Architecture.MISTRAL, {"size": "tiny", "dtype": "int8"}, "no dtype 'int8'.*bfloat16, float32"),
    ],
)
def test_the_error_for_an_unsupported_combination_names_the_supported_ones(
    tmp_path: Path, architecture: Architecture, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_checkpoint(tmp_path / "made", architecture, **options)
    assert list(tmp_path.iterdir()) == []


def test_only_a_checkpoint_is_overwritten_and_only_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    make_checkpoint(folder, Architecture.BERT, "tiny")
    with pytest.raises(FileExistsError, match="not empty"):
        make_checkpoint(folder, Architecture.MISTRAL, "tiny")
    make_checkpoint(folder, Architecture.MISTRAL, "tiny", overwrite=True)
    assert read_config(folder)["model_type"] == "mistral"
    (folder / "thesis.txt").write_text("the only copy")
    with pytest.raises(FileExistsError, match=r"not replaced, because it contains more than a checkpoint: thesis\.txt"):
        make_checkpoint(folder, Architecture.BERT, "tiny", overwrite=True)
    assert (folder / "thesis.txt").exists()


def test_a_file_at_the_target_path_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="not a folder"):
        make_checkpoint(tmp_path / "file", Architecture.BERT, "tiny", overwrite=True)


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="current folder"):
        make_checkpoint(Path(), Architecture.BERT, "tiny", overwrite=True)
    make_checkpoint(Path("relative"), Architecture.BERT, "tiny")
    assert {path.name for path in (tmp_path / "relative").iterdir()} == FILES


def test_an_interrupted_run_keeps_the_existing_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out_of_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    old = make_checkpoint(tmp_path / "old", Architecture.BERT, "tiny")
    monkeypatch.setattr(make, "save_torch_state_dict", run_out_of_disk)
    for folder in [old, tmp_path / "new"]:
        with pytest.raises(OSError, match="no space left"):
            make_checkpoint(folder, Architecture.MISTRAL, "tiny", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name for path in old.iterdir()} == FILES
    assert read_config(old)["model_type"] == "bert"


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(make_checkpoint_command)
    return app


def test_the_command_reports_one_line(command: typer.Typer, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    result = CliRunner().invoke(command, ["mistral", str(folder), "--head-bias", "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert result.output.count("\n") == 1
    num_parameters = count_parameters(Architecture.MISTRAL, "tiny", head_bias=True)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    assert f"{folder}: {num_parameters:,} parameters, {num_bytes:,} bytes, " in result.output


@pytest.mark.parametrize("arguments", [["--size", "4b"], ["--head-bias"], []])
def test_the_command_refuses_in_one_line_with_exit_code_2(
    command: typer.Typer, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "precious.txt").touch()
    result = CliRunner().invoke(command, ["bert", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
