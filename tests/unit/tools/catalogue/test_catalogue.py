"""The catalogue's entries match the models' published shapes and the engines that run them."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from rerank_service.config import EngineConfig, EngineKind
from rerank_service.engine.text.published_prompts import PUBLISHED_PROMPTS
from rerank_service.engine.text.yes_no_prompts import YES_NO_PROMPTS
from rerank_service.tools.catalogue import CATALOGUE, KnownModel, known_model
from rerank_service.tools.catalogue.filters import Filters, language_code, size_in_bytes
from rerank_service.tools.catalogue.fit import (
    Gpu,
    Machine,
    _num_cpus,
    fit,
    gigabytes,
    needed_bytes,
    sized,
    this_machine,
)
from rerank_service.tools.catalogue.settings import LoadOptions, model_settings
from rerank_service.tools.evaluation.published import PUBLISHED
from rerank_service.tools.random_checkpoints.foreign_formats import (
    gte_config,
    gte_shapes,
    minicpm_config,
    minicpm_shapes,
)
from rerank_service.tools.random_checkpoints.make import Architecture, count_parameters
from rerank_service.tools.random_checkpoints.shapes import Shape, shape_of
from tests.quantise import quantise

PAGE = Path(__file__).parents[4] / "docs" / "models.md"
LAPTOP = Machine(16_000_000_000, (), has_bfloat16=False)
H100 = Machine(128_000_000_000, (Gpu("NVIDIA H100", 80_000_000_000),), has_bfloat16=True)


def known(name: str) -> KnownModel:
    model = known_model(name)
    assert model is not None
    return model


def bert(layers: int, hidden: int, heads: int) -> BertConfig:
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_labels=1,
    )


def xlm_roberta(layers: int, hidden: int, heads: int, positions: int) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
        vocab_size=250_002,
        type_vocab_size=1,
        num_labels=1,
    )


def deberta(layers: int, hidden: int, heads: int) -> DebertaV2Config:
    return DebertaV2Config(
        hidden_size=hidden,
        pooler_hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        vocab_size=128_100,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        num_labels=1,
    )


def qwen2(layers: int, hidden: int, heads: int, intermediate: int) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        intermediate_size=intermediate,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )


def qwen3(layers: int, hidden: int, heads: int, intermediate: int) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=intermediate,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )


GEMMA_2B = GemmaConfig(
    hidden_size=2048,
    num_hidden_layers=18,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=256,
    intermediate_size=16_384,
    vocab_size=256_000,
)


def foreign(hidden: int, intermediate: int, layers: int, heads: int) -> Shape:
    return Shape(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        max_tokens=8192,
        model_max_length=8192,
    )


XLM_R, DEBERTA = XLMRobertaForSequenceClassification, DebertaV2ForSequenceClassification
SHAPES: dict[str, tuple[Any, Any]] = {
    "all-MiniLM-L6-v2": (BertModel, bert(6, 384, 12)),
    "ms-marco-TinyBERT-L2-v2": (BertForSequenceClassification, bert(2, 128, 2)),
    "ms-marco-MiniLM-L6-v2": (BertForSequenceClassification, bert(6, 384, 12)),
    "ms-marco-MiniLM-L12-v2": (BertForSequenceClassification, bert(12, 384, 12)),
    "bge-reranker-base": (XLM_R, xlm_roberta(12, 768, 12, 514)),
    "bge-reranker-large": (XLM_R, xlm_roberta(24, 1024, 16, 514)),
    "bge-reranker-v2-m3": (XLM_R, xlm_roberta(24, 1024, 16, 8194)),
    "mxbai-rerank-xsmall-v1": (DEBERTA, deberta(12, 384, 6)),
    "mxbai-rerank-base-v1": (DEBERTA, deberta(12, 768, 12)),
    "mxbai-rerank-large-v1": (DEBERTA, deberta(24, 1024, 16)),
    "gte-reranker-modernbert-base": (ModernBertForSequenceClassification, ModernBertConfig(num_labels=1)),
    "mxbai-rerank-base-v2": (Qwen2ForCausalLM, qwen2(24, 896, 14, 4864)),
    "mxbai-rerank-large-v2": (Qwen2ForCausalLM, qwen2(28, 1536, 12, 8960)),
    "bge-reranker-v2-gemma": (GemmaForCausalLM, GEMMA_2B),
    "zerank-1-small": (Qwen3ForCausalLM, qwen3(28, 2048, 16, 6144)),
    "zerank-1": (Qwen3ForCausalLM, qwen3(36, 2560, 32, 9728)),
    "zerank-2": (Qwen3ForCausalLM, qwen3(36, 2560, 32, 9728)),
}
MADE = {
    "llama-3.2-nv-rerankqa-1b-v2": (Architecture.LLAMA_BIDIREC, "1b"),
    "nv-rerankqa-mistral-4b-v3": (Architecture.MISTRAL, "4b"),
    "Qwen3-Reranker-0.6B": (Architecture.QWEN3, "0.6b"),
    "Qwen3-Reranker-4B": (Architecture.QWEN3, "4b"),
    "Qwen3-Reranker-8B": (Architecture.QWEN3, "8b"),
}
FOREIGN: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, tuple[int, ...]]], Shape, int]] = {
    "gte-multilingual-reranker": (gte_config, gte_shapes, foreign(768, 3072, 12, 12), 250_048),
    "bge-reranker-v2-minicpm": (minicpm_config, minicpm_shapes, foreign(2304, 5760, 40, 36), 122_753),
}
COLBERT = {  # the encoder, and the numbers of the projection
    "answerai-colbert-small-v1": (BertModel, bert(12, 384, 12), 384 * 96),
    "colbertv2.0": (BertModel, bert(12, 768, 12), 768 * 128),
    "GTE-ModernColBERT-v1": (ModernBertModel, ModernBertConfig(vocab_size=50_370), 768 * 128),  # two tokens more
    "mxbai-edge-colbert-v0-17m": (
        ModernBertModel,
        ModernBertConfig(
            vocab_size=50_370, hidden_size=256, num_hidden_layers=7, intermediate_size=384, num_attention_heads=4
        ),
        256 * 512 + 512 * 48,  # two projections, found from the size of the files
    ),
    "LateOn": (ModernBertModel, ModernBertConfig(vocab_size=50_370), 768 * 128),
}
UNPUBLISHED = {
    "llama-nemotron-rerank-500m-v2",
    "jina-colbert-v2",
    *(f"ctxl-rerank-v2-{size}" for size in ("1b", "2b", "6b")),
    "bge-reranker-v2.5-gemma2-lightweight",
    *(f"jina-reranker-{name}" for name in ("v1-turbo-en", "v2-base-multilingual", "v3", "m0")),
}


@pytest.mark.parametrize("name", SHAPES)
def test_numbers_equal_those_of_the_published_shape(name: str) -> None:
    model_class, config = SHAPES[name]
    with torch.device("meta"):
        model = model_class(config)

    assert known(name).num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (known(name).hidden_size, known(name).intermediate_size) == (config.hidden_size, config.intermediate_size)
    assert known(name).laid_out_heads == (config.num_attention_heads if model_class is DEBERTA else 0)
    assert known(name).architecture.endswith(f"{config.num_hidden_layers} layers of {config.hidden_size}")


@pytest.mark.parametrize("name", COLBERT)
def test_numbers_of_colbert_models_count_the_projection(name: str) -> None:
    model_class, config, projection = COLBERT[name]
    with torch.device("meta"):
        model = model_class(config)

    assert known(name).num_parameters == projection + sum(parameter.numel() for parameter in model.parameters())
    assert (known(name).hidden_size, known(name).intermediate_size) == (config.hidden_size, config.intermediate_size)
    assert known(name).architecture.endswith(f"{config.num_hidden_layers} layers of {config.hidden_size}")


@pytest.mark.parametrize("name", MADE)
def test_numbers_equal_those_of_random_checkpoints(name: str) -> None:
    shape = shape_of(*MADE[name])
    assert known(name).num_parameters == count_parameters(*MADE[name])
    assert (known(name).hidden_size, known(name).intermediate_size) == (shape.hidden_size, shape.intermediate_size)


@pytest.mark.parametrize("name", FOREIGN)
def test_numbers_equal_those_of_the_formats_with_their_own_code(name: str) -> None:
    config_of, shapes_of, shape, vocab_size = FOREIGN[name]
    ids = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2}
    tensors = shapes_of(config_of(shape, vocab_size, ids, "bfloat16"))

    assert known(name).num_parameters == sum(math.prod(dimensions) for dimensions in tensors.values())
    assert (known(name).hidden_size, known(name).intermediate_size) == (shape.hidden_size, shape.intermediate_size)
    assert known(name).architecture.endswith(f"{shape.num_layers} layers of {shape.hidden_size}")


def test_every_model_is_checked() -> None:
    names = SHAPES.keys() | MADE.keys() | FOREIGN.keys() | COLBERT.keys() | UNPUBLISHED
    assert {model.name for model in CATALOGUE} == names


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_every_entry_is_complete(model: KnownModel) -> None:
    assert model.licence
    assert model.architecture
    assert (model.engine is None) == (model.refusal is not None)
    assert model.engine is not EngineKind.AUTO
    assert model.kind in (EngineKind.AUTO, model.engine)
    assert model.revision is None or (model.hub_id and re.fullmatch("[0-9a-f]{40}", model.revision))
    assert model.languages or not model.language_codes
    assert len(set(model.language_codes)) == len(model.language_codes)
    assert all(re.fullmatch("[a-z]{2}", code) for code in model.language_codes)  # YAML reads a bare no as a boolean
    claimed = re.match(r"(\d+) languages$", model.languages)
    assert claimed is None or len(model.language_codes) == int(claimed[1])
    assert model.quality is None or (0 < model.quality.value < 1 and model.quality.source)
    if model.engine is EngineKind.YES_NO_DECODER:
        family = model.architecture.split(",")[0].lower()
        assert model.yes_no_prompt in PUBLISHED_PROMPTS or family in {*YES_NO_PROMPTS, "minicpm"}


@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3", "deberta_v2"])
def test_sizes_of_an_unknown_model_are_read_from_its_files(name: str, checkpoints: dict[str, Path]) -> None:
    unknown = KnownModel(name="mine", id="mine", application="mine", source="")
    model, shape = sized(unknown, checkpoints[name]), shape_of(Architecture(name), "tiny")

    assert model.num_parameters == count_parameters(Architecture(name), "tiny")
    assert (model.hidden_size, model.intermediate_size) == (shape.hidden_size, shape.intermediate_size)
    assert bool(model.laid_out_heads) == (name == "deberta_v2")
    assert needed_bytes(model, on_gpu=False, is_half=False) > 1_000_000_000
    assert sized(known("bge-reranker-base"), checkpoints[name]) is known("bge-reranker-base")


@pytest.mark.parametrize("form", ["packed int4", "awq int4", "float8 by block"])
def test_sizes_of_a_quantised_model_are_those_of_the_original(
    form: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    unknown = KnownModel(name="mine", id="mine", application="mine", source="")
    quantised, _ = quantise(checkpoints["qwen3"], tmp_path, form)
    assert sized(unknown, quantised) == sized(unknown, checkpoints["qwen3"])


@pytest.mark.parametrize(("quota", "most"), [("max 100000", 4096), ("250000 100000", 2), ("50000 100000", 1)])
def test_cpus_are_limited_by_the_quota_of_the_container(quota: str, most: int, tmp_path: Path) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(quota + "\n")
    assert 1 <= _num_cpus(path) <= most


def test_models_without_commercial_use_are_marked() -> None:
    marked = {model.name for model in CATALOGUE if not model.is_commercial}
    assert marked == {model.name for model in CATALOGUE if "NC" in model.licence.split("-")}
    assert {"zerank-1", "ctxl-rerank-v2-6b", "jina-reranker-v2-base-multilingual"} <= marked


@pytest.mark.parametrize("name", ["zerank-2", "zeroentropy/zerank-1-small-reranker", "bge-reranker-v2-gemma"])
def test_a_prompt_that_the_files_do_not_identify_is_configured(name: str) -> None:
    settings = model_settings(name, LoadOptions(device="cpu"), lambda *_: None)
    assert settings.engine.yes_no_prompt == ("zerank" if "zerank" in name else None)
    assert settings.engine.kind is (EngineKind.YES_NO_DECODER if "zerank" in name else EngineKind.AUTO)


def test_memory_is_the_sum_of_weights_activations_and_process() -> None:
    model = known("bge-reranker-base")
    activations = 4_096 * (12 * 768 + 7 * 3072)
    assert needed_bytes(model, on_gpu=False, is_half=False) == 4 * (278_044_417 + activations) + 1_000_000_000
    laid_out = known("mxbai-rerank-base-v1")
    activations = 4_096 * (12 * 768 + 7 * 3072) + 5 * 4_096 * 12 * 512
    assert needed_bytes(laid_out, on_gpu=False, is_half=False) == 4 * (184_422_913 + activations) + 1_000_000_000
    long = known("Qwen3-Reranker-0.6B")  # the longest pair is larger than a CPU's default batch
    activations = 8_192 * (12 * 1024 + 7 * 3072)
    assert needed_bytes(long, on_gpu=False, is_half=True) == 2 * (595_776_512 + activations) + 1_000_000_000


@pytest.mark.parametrize(
    ("name", "machine", "place", "is_slow", "reason"),
    [
        ("all-MiniLM-L6-v2", LAPTOP, "CPU", False, None),
        ("all-MiniLM-L6-v2", H100, "GPU", False, None),
        ("llama-3.2-nv-rerankqa-1b-v2", LAPTOP, "CPU", True, None),
        ("llama-3.2-nv-rerankqa-1b-v2", H100, "GPU", False, None),
        ("Qwen3-Reranker-8B", LAPTOP, None, False, "16.0 GB of memory, and no GPU; the model needs"),
        (
            "Qwen3-Reranker-8B",
            LAPTOP._replace(gpus=(Gpu("T4", 16_000_000_000),)),
            None,
            False,
            "largest GPU has 16.0 GB",
        ),
        ("Qwen3-Reranker-8B", H100._replace(gpus=(Gpu("T4", 16_000_000_000),)), "CPU", True, None),
        ("jina-reranker-v2-base-multilingual", H100, None, False, "never runs code"),
        ("llama-nemotron-rerank-500m-v2", H100, None, False, "not published"),
    ],
)
def test_where_a_model_runs(name: str, machine: Machine, place: str | None, is_slow: bool, reason: str | None) -> None:
    verdict = fit(known(name), machine)
    assert (verdict.place, verdict.is_slow) == (place, is_slow)
    assert (verdict.reason is None) if reason is None else reason in (verdict.reason or "")


def test_the_memory_of_a_container_is_the_limit_of_its_cgroup(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    physical = this_machine(limit).memory_bytes
    assert physical > 0
    limit.write_text("max\n")
    assert this_machine(limit).memory_bytes == physical
    limit.write_text("4000000\n")
    assert this_machine(limit).memory_bytes == 4_000_000


def test_the_prompts_on_the_models_page_are_valid_configurations() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    configurations = [EngineConfig.model_validate(one["engine"]) for one in yaml.safe_load_all(blocks[0])]
    assert len(blocks) == 1
    assert configurations[0].instruction
    assert configurations[1].yes_no is not None


def test_published_figures_equal_those_of_the_evaluation() -> None:
    figures = {known(one.model).name: one for one in PUBLISHED if known_model(one.model)}
    assert figures
    for name, figure in figures.items():
        quality = known(name).quality
        assert quality is not None
        assert (quality.measure, quality.collections, quality.value) == (
            figure.measure,
            figure.collections,
            figure.value,
        )
        assert figure.first_stage in quality.source


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("2GB", 2e9), ("1.5 gb", 1.5e9), ("500MB", 5e8), ("2GiB", 2 * 2**30), ("1TB", 1e12)]
)
def test_sizes_have_units(text: str, num_bytes: float) -> None:
    assert size_in_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "1e3GB", "2 giga", "2KB"])
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size_in_bytes(text)


def test_a_region_is_not_part_of_a_language() -> None:
    assert (language_code("pt-BR"), language_code(" DE ")) == ("pt", "de")


def test_only_models_of_known_size_pass_a_limit_of_memory() -> None:
    model = known("llama-nemotron-rerank-500m-v2")
    assert Filters(max_memory_bytes=10**12).passes(model, 10**9)
    assert not Filters(max_memory_bytes=10**12).passes(model, None)
    assert Filters().passes(model, None)
    assert not Filters(language="de").passes(model, 10**9)  # its publisher states no language


def test_relaxed_filters_name_only_options_that_help() -> None:
    models = [(known("bge-reranker-base"), 2), (known("ms-marco-MiniLM-L6-v2"), 1)]
    filters = Filters(language="de", max_memory_bytes=5, licence="mit")
    assert [(option, [model.name for model, _ in passing]) for option, passing in filters.relaxed(models)] == [
        ("--language", ["bge-reranker-base"])
    ]


def test_a_size_copied_from_the_list_passes_its_model() -> None:
    model, needed_bytes = known("gte-multilingual-reranker"), 2_115_235_842
    assert gigabytes(needed_bytes) == "2.1 GB"
    assert Filters(max_memory_bytes=size_in_bytes("2.1 GB")).passes(model, needed_bytes)
    assert not Filters(max_memory_bytes=size_in_bytes("2 GB")).passes(model, needed_bytes)


def test_relaxed_filters_suggest_no_model_that_no_engine_runs() -> None:
    models = [(known("jina-colbert-v2"), None), (known("zerank-1"), 10)]
    filters = Filters(licence="NC", is_commercial=True)
    assert [(option, [model.name for model, _ in passing]) for option, passing in filters.relaxed(models)] == [
        ("--commercial", ["zerank-1"])
    ]
