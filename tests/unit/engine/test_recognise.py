"""Engines chosen for published config.json files; the tests give only the keys that matter."""

from typing import Any

import pytest

from rerank_service.config import EngineKind
from rerank_service.engine.recognise import recognise_engine
from rerank_service.errors import CheckpointError


def config_of(architecture: str, model_type: str, **others: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **others}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (
            config_of("LlamaBidirectionalForSequenceClassification", "llama_bidirec", auto_map={"AutoConfig": "x.X"}),
            EngineKind.BIDIRECTIONAL_DECODER,
        ),
        (config_of("MistralForSequenceClassification", "mistral"), EngineKind.BIDIRECTIONAL_DECODER),
        (config_of("BertForSequenceClassification", "bert"), EngineKind.SEQUENCE_CLASSIFIER),
        (config_of("XLMRobertaForSequenceClassification", "xlm-roberta"), EngineKind.SEQUENCE_CLASSIFIER),
        (config_of("ModernBertForSequenceClassification", "modernbert"), EngineKind.SEQUENCE_CLASSIFIER),
        (config_of("DebertaV2ForSequenceClassification", "deberta-v2"), EngineKind.SEQUENCE_CLASSIFIER),
        (
            config_of("NewForSequenceClassification", "new", auto_map={"AutoConfig": "x.NewConfig"}),
            EngineKind.SEQUENCE_CLASSIFIER,
        ),
        (
            config_of("LayerWiseMiniCPMForCausalLM", "minicpm", auto_map={"AutoConfig": "x.X"}),
            EngineKind.YES_NO_DECODER,
        ),
        (config_of("BertModel", "bert"), EngineKind.LATE_INTERACTION),
        (config_of("HF_ColBERT", "bert"), EngineKind.LATE_INTERACTION),  # colbertv2.0, answerai-colbert-small-v1
        (config_of("ModernBertModel", "modernbert"), EngineKind.LATE_INTERACTION),  # LateOn
        (config_of("Qwen3ForCausalLM", "qwen3"), EngineKind.YES_NO_DECODER),
        (
            config_of("Qwen3ForCausalLM", "qwen3", quantization_config={"quant_method": "awq", "bits": 4}),
            EngineKind.YES_NO_DECODER,
        ),
        (config_of("Qwen2ForCausalLM", "qwen2"), EngineKind.YES_NO_DECODER),
        (config_of("GemmaForCausalLM", "gemma"), EngineKind.YES_NO_DECODER),
        (config_of("Qwen3ForSequenceClassification", "qwen3"), EngineKind.YES_NO_DECODER),
    ],
)
def test_published_checkpoints_get_the_right_engine(config: dict[str, Any], kind: EngineKind) -> None:
    assert recognise_engine(config, "it") is kind


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        # jina-reranker-v1-turbo-en, jina-reranker-v2-base-multilingual, gte-multilingual-base
        (
            config_of("JinaBertForSequenceClassification", "bert", auto_map={"AutoConfig": "x.JinaBertConfig"}),
            "has ALiBi positions .* code is never run: use Alibaba-NLP/gte-reranker-modernbert-base",
        ),
        (
            config_of("XLMRobertaForSequenceClassification", "xlm-roberta", auto_map={"AutoModel": "x.X"}),
            "a checkpoint's code is never run",
        ),
        (config_of("NewModel", "new", auto_map={"AutoModel": "x.X"}), "a checkpoint's code is never run"),
        (config_of("Qwen3ForCausalLM", "qwen3", auto_map={"AutoModelForCausalLM": "x.X"}), "never run"),
        (config_of("Qwen3ForCausalLM", "qwen3", quantization_config={"bits": 4}), "is already quantised"),
        (
            config_of("Qwen3ForCausalLM", "qwen3", quantization_config={"quant_method": "bitsandbytes"}),
            r"is already quantised \(bitsandbytes\), which no engine reads: use the original weights, or",
        ),
        (config_of("MiniCPMForCausalLM", "minicpm", auto_map={"AutoConfig": "x.X"}), "never run"),
        (config_of("LlamaForCausalLM", "llama"), "set engine.kind: yes_no_decoder and give its prompt"),
        (config_of("Gemma2ForCausalLM", "gemma2"), "whose attention no engine supports"),
        (config_of("GPT2LMHeadModel", "gpt2"), "language model of the family gpt2, whose attention no engine supports"),
        (
            config_of("JinaForRanking", "qwen3", auto_map={"AutoModel": "x.X"}),
            "depends on the others.*: use Qwen/",
        ),
        (config_of("JinaVLForRanking", "qwen2_vl", auto_map={"AutoModel": "x.X"}), "ranks texts only: use Qwen/Qwen3"),
        (
            config_of("CostWiseGemmaForCausalLM", "cost_wise_gemma", auto_map={"AutoConfig": "x.X"}),
            "soft cap of Gemma 2, .*: use BAAI/bge-reranker-v2-gemma",
        ),
        (config_of("OtherForRanking", "qwen3"), "set engine.kind to one of bidirectional_decoder, sequence_classifier"),
        (config_of("T5ForConditionalGeneration", "t5"), "no engine supports"),
        ({}, "no engine supports"),
    ],
)
def test_an_unsupported_checkpoint_is_refused_with_the_reason_and_the_supported_models(
    config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        recognise_engine(config, "some/model")

    assert str(caught.value).startswith("some/model ")
    assert "The engines support sequence classifiers with one label" in str(caught.value)
