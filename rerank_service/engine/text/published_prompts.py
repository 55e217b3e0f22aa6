"""Published prompts of yes/no decoders by name, and the choice of a checkpoint's prompt."""

import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from rerank_service.config import EngineConfig, YesNoPrompt, YesNoPromptName
from rerank_service.engine.loading import read_json
from rerank_service.engine.text.yes_no_prompts import YES_NO_PROMPTS
from rerank_service.errors import CheckpointError

__all__ = ["PUBLISHED_PROMPTS", "AnswerTokens", "answer_tokens", "choose_prompt"]

logger = logging.getLogger(__name__)

_ZERANK = YesNoPrompt(
    parts=(
        "<|im_start|>system\n{query}",
        "<|im_end|>\n<|im_start|>user\n{passage}",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    yes_word="Yes",
    temperature=5.0,
)
"""For zeroentropy's zerank-1, zerank-1-small and zerank-2. Sources: the model cards, whose score is `sigmoid(logit of
Yes / 5)`, and their chat template, copied on GitHub in cohere-ai/rcp-ndcg, recipes/zerank. Earlier published code also
strips white space around both texts; the template in the checkpoints does not, and neither does this service."""

_CTXL_RERANK_V2 = YesNoPrompt(
    parts=(
        "Check whether a given document contains information helpful to answer the query.\n<Document> {passage}\n"
        "<Query> {query} ??",
    ),
    yes_word="!",
)
"""For ContextualAI's ctxl-rerank-v2-instruct-multilingual-1b and -2b. Source: the code on their model cards, copied on
GitHub in cohere-ai/rcp-ndcg, recipes/ctxl-rerank-v2-instruct-multilingual. The score is the logit of token 0, which is
"!" in Qwen3's vocabulary. An instruction follows the query, after a space."""

_BGE_MINICPM = YES_NO_PROMPTS["gemma"].model_copy(update={"parts": ("<s>", *YES_NO_PROMPTS["gemma"].parts[1:])})
"""For BAAI/bge-reranker-v2-minicpm-layerwise. Source: github.com/FlagOpen/FlagEmbedding at commit 0231969,
FlagEmbedding/inference/reranker/decoder_only/layerwise.py. The model has a head instead of answers."""

PUBLISHED_PROMPTS: dict[YesNoPromptName, YesNoPrompt] = {
    "qwen3-reranker": YES_NO_PROMPTS["qwen3"],
    "mxbai-rerank-v2": YES_NO_PROMPTS["qwen2"],
    "bge-reranker-v2-gemma": YES_NO_PROMPTS["gemma"],
    "bge-reranker-v2-minicpm": _BGE_MINICPM,
    "zerank": _ZERANK,
    "ctxl-rerank-v2": _CTXL_RERANK_V2,
    "ctxl-rerank-v2-6b": _CTXL_RERANK_V2.model_copy(update={"yes_word": "<unk>"}),  # token 0 of Mistral's vocabulary
}

_OF_FAMILY: dict[str, YesNoPromptName] = {
    "qwen3": "qwen3-reranker",
    "qwen2": "mxbai-rerank-v2",
    "gemma": "bge-reranker-v2-gemma",
    "minicpm": "bge-reranker-v2-minicpm",
}
"""Prompt of each `model_type`, if neither the settings nor the files say more."""
_WITH_ANSWERS: dict[str, tuple[YesNoPromptName, ...]] = {
    "qwen3": ("qwen3-reranker", "zerank", "ctxl-rerank-v2"),
    "qwen2": ("mxbai-rerank-v2",),
    "gemma": ("bge-reranker-v2-gemma",),
    "mistral": ("ctxl-rerank-v2-6b",),
}
"""Prompts that the files of each `model_type` can identify by the tokens of their answers."""
_MODULE_PATH = re.compile(r"\w[\w.-]*", re.ASCII)


class AnswerTokens(NamedTuple):
    """Tokens whose logits are a checkpoint's score, as its files state them."""

    yes: int
    no: int | None


def answer_tokens(folder: Path) -> AnswerTokens | None:
    """The tokens in the configuration of sentence-transformers' module `LogitScore`; null if the files have none.

    Raises `CheckpointError` if the files contradict their format.
    """
    path = _logit_score(folder)
    if path is None or not path.is_file():
        return None
    settings = read_json(path)
    yes, no = settings.get("true_token_id"), settings.get("false_token_id")
    if type(yes) is not int or not (no is None or type(no) is int):
        raise CheckpointError(f"{path} has no true_token_id, or its ids are not integers")
    return AnswerTokens(yes, no)


def choose_prompt(folder: Path, raw: dict[str, Any], options: EngineConfig) -> YesNoPrompt:
    """The configured prompt, else the published prompt with the answers in the files, else that of the family.

    Logs a warning if the files refer to answers that are missing. Raises `CheckpointError` if no published prompt has
    these answers, or if the family has no published prompt.
    """
    if options.yes_no is not None:
        return options.yes_no
    if options.yes_no_prompt is not None:
        return PUBLISHED_PROMPTS[options.yes_no_prompt]
    family, answers = str(raw.get("model_type")), answer_tokens(folder)
    if answers is not None:
        return _with_answers(folder, family, answers)
    if family not in _OF_FAMILY:
        raise CheckpointError(
            f"{folder} is a language model of the family {family!r}, which has no known reranking prompt (only "
            f"{', '.join(_OF_FAMILY)} have one): set engine.yes_no to the prompt that was used in training, or "
            "engine.yes_no_prompt to the name of a published one"
        )
    if (missing := _logit_score(folder)) is not None:
        logger.warning(
            "%s is missing, which states by which tokens the model scores: the prompt %s of the family %s is assumed",
            *(missing, _OF_FAMILY[family], family),
        )
    return PUBLISHED_PROMPTS[_OF_FAMILY[family]]


def _with_answers(folder: Path, family: str, answers: AnswerTokens) -> YesNoPrompt:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for name in _WITH_ANSWERS.get(family, ()):
        prompt = PUBLISHED_PROMPTS[name]
        words = (prompt.yes_word, prompt.no_word)
        if tuple(None if word is None else tokenizer.token_to_id(word) for word in words) == answers:
            return prompt
    raise CheckpointError(
        f"{folder} scores by the tokens {answers.yes} and {answers.no}, with which no published prompt of the family "
        f"{family!r} answers: set engine.yes_no to the prompt that was used in training"
    )


def _logit_score(folder: Path) -> Path | None:
    """Path of the module's configuration, which may be missing; null if modules.json names no such module."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    try:
        listed = [(str(module["type"]), str(module["path"])) for module in json.loads(modules.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{modules} is not a list of modules ({type(error).__name__}): {error}") from None
    for kind, path in listed:
        if kind.endswith(".LogitScore"):
            if not _MODULE_PATH.fullmatch(path):
                raise CheckpointError(f"{modules} names the folder {path!r}, which is not a folder of the checkpoint")
            return folder / path / "config.json"
    return None
