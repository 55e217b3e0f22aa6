"""Chooses the engine for a checkpoint from config.json alone; a refusal states the reason and what to do.

Reads no tensors and executes no code. The engines check the tensors against the configuration.
"""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from rerank_service.config import EngineKind
from rerank_service.engine.foreign_configs import FOREIGN_CLASSIFIERS, LAYERWISE_MINICPM
from rerank_service.engine.kinds.bidirectional_decoder import DECODER_FAMILIES
from rerank_service.engine.kinds.late_interaction_format import STANFORD
from rerank_service.engine.kinds.yes_no_decoder import CAUSAL_FAMILIES
from rerank_service.engine.quantised.scheme import read_scheme
from rerank_service.engine.text.yes_no_prompts import YES_NO_PROMPTS
from rerank_service.errors import CheckpointError

__all__ = ["SUPPORTED", "recognise_engine"]

SUPPORTED = (
    "sequence classifiers with one label and a class in transformers (BERT, XLM-RoBERTa, ModernBERT, DeBERTa ...), and "
    "GTE's own; "
    f"NVIDIA's bidirectional decoders ({', '.join(DECODER_FAMILIES)}); language models that answer yes or no "
    f"({', '.join(YES_NO_PROMPTS)}; with your own prompt in engine.yes_no also "
    f"{', '.join(sorted(CAUSAL_FAMILIES.keys() - YES_NO_PROMPTS.keys()))}); ColBERT models in pylate's "
    "or Stanford's format, and encoders such as all-MiniLM-L6-v2, by late interaction"
)
"""List of supported models, as it appears in messages."""

_REFUSED = {
    "JinaForRanking": "reads all passages of a query in one text, so the score of a passage depends on the others, and "
    "this service guarantees that it does not: use Qwen/Qwen3-Reranker-0.6B, which has the same base",
    "JinaVLForRanking": "is a vision-language model, and this service ranks texts only: use Qwen/Qwen3-Reranker-4B",
    "CostWiseGemmaForCausalLM": "merges tokens between layers, and its attention has the soft cap of Gemma 2, which no "
    "engine computes: use BAAI/bge-reranker-v2-gemma or BAAI/bge-reranker-v2-minicpm-layerwise",
    "JinaBertForSequenceClassification": "has ALiBi positions and needs code that ships with it, but a checkpoint's "
    "code is never run: use Alibaba-NLP/gte-reranker-modernbert-base",
}
"""Reason and way out for published rerankers that no engine runs, by their class."""


def recognise_engine(config: Mapping[str, Any], name: str, *, has_answers: bool = False) -> EngineKind:
    """The engine for a checkpoint with this config.json. Raises `CheckpointError` with a message that starts with
    `name`. `has_answers`: the settings or other files state by which tokens a language model scores."""
    architectures = [str(one) for one in config.get("architectures") or []]
    family = str(config.get("model_type"))
    is_classifier = any(one.endswith("ForSequenceClassification") for one in architectures)
    is_language_model = any(one.endswith(("ForCausalLM", "LMHeadModel")) for one in architectures)
    if (known := next((_REFUSED[one] for one in architectures if one in _REFUSED), None)) is not None:
        raise _refusal(name, known)
    try:
        read_scheme(config)
    except ValueError as error:
        raise _refusal(name, str(error)) from None
    if family in DECODER_FAMILIES and not is_language_model:
        return EngineKind.BIDIRECTIONAL_DECODER
    if is_classifier and family in FOREIGN_CLASSIFIERS:
        return EngineKind.SEQUENCE_CLASSIFIER
    if LAYERWISE_MINICPM in architectures:
        return EngineKind.YES_NO_DECODER
    if has_answers and is_language_model and family in CAUSAL_FAMILIES:
        return EngineKind.YES_NO_DECODER
    if "auto_map" in config or (is_classifier and family not in CONFIG_MAPPING):
        raise _refusal(
            name,
            f"needs code that ships with it ({', '.join(architectures) or family}), but a checkpoint's code is never "
            "run. If transformers itself implements this model with the same tensor names, you can set engine.kind to "
            "use that implementation; loading fails unless every tensor matches it",
        )
    if (is_language_model or is_classifier) and family in YES_NO_PROMPTS:
        return EngineKind.YES_NO_DECODER
    if is_language_model and family in CAUSAL_FAMILIES:
        raise _refusal(
            name,
            f"is a language model of the family {family}, which has no known reranking prompt: if the model was "
            "trained to answer yes or no, set engine.kind: yes_no_decoder and give its prompt in engine.yes_no",
        )
    if is_language_model:
        raise _refusal(name, f"is a language model of the family {family}, whose attention no engine supports")
    if is_classifier:
        return EngineKind.SEQUENCE_CLASSIFIER
    if any(one.endswith("Model") or one == STANFORD for one in architectures):
        return EngineKind.LATE_INTERACTION
    raise _refusal(
        name,
        f"has architectures {architectures}, which no engine supports; if it is a reranker that one of the engines "
        f"can run, set engine.kind to one of {', '.join(kind for kind in EngineKind if kind is not EngineKind.AUTO)}",
    )


def _refusal(name: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{name} {reason}. The engines support {SUPPORTED}")
