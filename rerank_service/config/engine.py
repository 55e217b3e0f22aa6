"""Settings that say how a checkpoint runs: the engine, device and precision, and the settings of each engine kind."""

import re
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rerank_service.config.section import Section

__all__ = [
    "Device",
    "Dtype",
    "EngineConfig",
    "EngineKind",
    "FlashAttention",
    "LateInteractionHead",
    "Pooling",
    "SpecialTokens",
    "YesNoPrompt",
    "YesNoPromptName",
]


class EngineKind(StrEnum):
    """How a checkpoint turns a pair into a logit."""

    AUTO = "auto"
    BIDIRECTIONAL_DECODER = "bidirectional_decoder"
    SEQUENCE_CLASSIFIER = "sequence_classifier"
    LATE_INTERACTION = "late_interaction"
    YES_NO_DECODER = "yes_no_decoder"


class Pooling(StrEnum):
    """How a bidirectional decoder reduces its token states to one vector. The published checkpoints use these names."""

    AVG = "avg"
    WEIGHTED_AVG = "weighted_avg"
    CLS = "cls"
    LAST = "last"


class Dtype(StrEnum):
    """Precision of the forward pass. Pooling and the head always run in float32."""

    AUTO = "auto"
    FASTEST = "fastest"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    FLOAT8 = "float8"


SpecialTokens = Literal["text", "parse"]

FlashAttention = Literal[2, 3, 4]

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class LateInteractionHead(Section):
    """Linear head of a late-interaction model: `logit = cosine_weight * cosine + maxsim_weight * maxsim + bias`.

    The defaults were fitted pointwise for all-MiniLM-L6-v2, on public questions with their passages. Fit your own
    weights for any other sentence encoder. ColBERT models need no head: their logit is MaxSim itself, as a sum.
    """

    cosine_weight: float = 6.42
    """Weight of the cosine between the mean-pooled vectors of query and passage."""

    maxsim_weight: float = 9.83
    """Weight of MaxSim: for each query token the best cosine with any passage token, averaged over the query tokens."""

    maxsim_is_sum: bool = False
    """Whether MaxSim is the sum over the query tokens, as ColBERT defines it, and not their average."""

    bias: float = -11.00
    """Constant added to the weighted sum. It shifts all logits equally and never changes a ranking."""


YesNoPromptName = Literal[
    "qwen3-reranker",
    "mxbai-rerank-v2",
    "bge-reranker-v2-gemma",
    "bge-reranker-v2-minicpm",
    "zerank",
    "ctxl-rerank-v2",
    "ctxl-rerank-v2-6b",
]

_PROMPT_SLOT = re.compile(r"\{[^{}]*\}")


class YesNoPrompt(Section):
    """The prompt that asks a yes/no decoder about a pair, and the words with which the decoder answers."""

    parts: Annotated[tuple[str, ...], Field(min_length=1)]
    """The prompt, in parts that are tokenised separately. Together they contain `{query}` once, `{passage}` once, and
    optionally `{instruction}`. The part with `{passage}` must end with it, unless it is the only part: a pair that is
    too long is truncated at that place, and the text after it stays whole."""

    yes_word: Annotated[str, Field(min_length=1)]
    """The answer for a relevant passage. It must be a single token of the model. Quote it in YAML, where a bare yes
    is a boolean."""

    no_word: str | None = None
    """The answer for an irrelevant passage; the score is the logit of `yes_word` minus that of `no_word`. Null: the
    score is the logit of `yes_word` alone."""

    instruction: str | None = None
    """Text inserted for `{instruction}` when `engine.instruction` is null. Required if `parts` contain
    `{instruction}`."""

    temperature: PositiveFloat = 1.0
    """The score is divided by this number. This changes the scale of scores but not a ranking."""

    @model_validator(mode="after")
    def _slots_are_in_their_places(self) -> Self:
        slots = _PROMPT_SLOT.findall("\n".join(self.parts))
        if unknown := set(slots) - {"{query}", "{passage}", "{instruction}"}:
            raise ValueError(
                f"parts contain {', '.join(sorted(unknown))}; allowed are {{query}}, {{passage}} and {{instruction}}"
            )
        if slots.count("{query}") != 1 or slots.count("{passage}") != 1:
            raise ValueError("parts must contain {query} once and {passage} once")
        if len(self.parts) > 1 and not any(part.endswith("{passage}") for part in self.parts):
            raise ValueError("the part with {passage} must end with {passage}; move the text after it to the next part")
        if "{instruction}" in slots and self.instruction is None:
            raise ValueError("parts contain {instruction}: set instruction to its default text")
        return self


class EngineConfig(Section):
    """How the checkpoint is run. Null settings take their value from the checkpoint's own files."""

    kind: EngineKind = EngineKind.AUTO
    """Engine that runs the checkpoint. `auto` selects an engine by the checkpoint's `config.json`. Set a kind only if
    that fails or if the service logs that it guessed the kind."""

    device: Device = "auto"
    """Device of the forward pass: `cpu`, `cuda` or `cuda:N`. `auto` takes a GPU if the replica has one, else the
    CPU."""

    dtype: Dtype = Dtype.AUTO
    """Precision of the forward pass; pooling and the head always run in float32. `auto`: bfloat16 where the hardware
    computes in it (a GPU; a CPU with AVX512-BF16 or AMX), otherwise float32 on a CPU and float16 on a GPU; float8 on a
    GPU only after `rerank-service verify --record` has accepted it for this checkpoint (see `verdicts`). `int8`:
    linear layers in 8-bit integers, on an x86 CPU with AVX2; encoders are calibrated at load with text that ships
    with the service, and decoders are scaled row by row during each pass. `float8`: linear layers in 8-bit floats
    (e4m3), on an Ada, Hopper or newer GPU. `fastest`: also int8, on a CPU that supports it; on a GPU, as `auto`. On a
    CPU, `auto` and `fastest` take the type in which a layer of the model's size is fastest, and within 5% the more
    accurate type; this is measured once per machine, for about a second. All replicas of a deployment compute as its
    first replica chose, and a replica that cannot do so does not start. Measure the effect of `int8`, `float8` and
    `fastest` on your rankings first."""

    num_threads: PositiveInt | None = None
    """CPU threads of a forward pass. Null: the replica's `num_cpus`, or, outside Ray, every CPU available to the
    process."""

    cuda_graphs: bool = True
    """GPU, in bfloat16, float16 and float8: run small batches as CUDA graphs, which saves launch time. The graphs are
    captured while the model loads, for up to about 2,300 tokens with a model of 1B parameters and up to 8,192 with a
    small one. If a graph fails or its results differ from those of an ordinary pass, the engine turns graphs off and
    logs a warning."""

    compile: bool | None = None
    """GPU: fuse the elementwise operations of each layer with torch.compile, once for all lengths and while the model
    loads. Null: in bfloat16, float16 and float8, for models that run packed. Needs Triton, a C compiler and
    Python's headers; without them, or if the compiled layers fail or compute other states, the layers run uncompiled
    and a warning names the reason. float8 without compilation is slower than bfloat16 (estimated,
    docs/appendix/gpu.md). The compiled kernels are kept in `RERANK_SERVICE_KERNELS` or
    `~/.cache/rerank-service-kernels`, each followed by the user's number, in folders that only this user can read."""

    verdicts: str | None = None
    """Folder with the records that `rerank-service verify --record` writes. A record of recorded scores verifies a
    model whose files leave its template, pooling or direction of attention open. A record of float8 lets `dtype: auto`
    take float8, on a GPU, for the recorded checkpoint, GPU, torch and version of the service. Null: `verdicts` in the
    cache of checkpoints."""

    batch_invariant: bool = False
    """GPU: give a pair the same score, to the last bit, in every batch, as a CPU with AVX512-BF16 always does. Every
    forward pass then has the same number of tokens, padding included: `batching.max_batch_tokens`, or the window if
    that is larger. A single pair takes as long as a full batch, and CUDA graphs are not used. To limit the cost, lower
    `max_batch_tokens` and `window_tokens`. For decoders, and for classifiers that run packed. `rerank-service verify`
    checks the promise on your GPU; it has not been measured yet."""

    flash_attention: FlashAttention = 2
    """GPU, in bfloat16, float16 and float8: version of FlashAttention, for all models of a process. 2 is part of torch.
    3 needs torch 2.12 or newer, a Hopper GPU and the package that provides `flash_attn_interface`; 4 needs a Hopper or
    Blackwell GPU and `flash_attn.cute`. The model does not load if the version is missing. 3 and 4 have not been
    tried."""

    special_tokens: SpecialTokens = "text"
    """How the service reads special tokens, such as `[SEP]` or `<|im_end|>`, that a query or passage spells out.
    `text`: as plain characters, so that a passage cannot write part of the prompt. `parse`: as special tokens, like
    transformers by default. Templates and prompts are always parsed."""

    prompt_template: str | None = None
    """Bidirectional decoder: text of a pair, with `{query}` and `{passage}`. Null: the template in the checkpoint's
    `config.json`, else the template of NVIDIA's published rerankers."""

    pooling: Pooling | None = None
    """Bidirectional decoder: how the token states of a pair are reduced to one vector. Null: as the checkpoint's
    `config.json` says, else `avg`."""

    temperature: PositiveFloat | None = None
    """Bidirectional decoder: the score is divided by this number. This changes the scale of scores but not a ranking.
    Null: as the checkpoint's `config.json` says, else 1."""

    yes_no: YesNoPrompt | None = None
    """Yes/no decoder: its prompt and its two answers. Null: the published prompt whose answers the checkpoint's files
    state; if they state none, the prompt published with the model's family."""

    yes_no_prompt: YesNoPromptName | None = None
    """Yes/no decoder: name of a published prompt, for a checkpoint whose files do not identify its prompt. Not with
    `yes_no`."""

    instruction: str | None = None
    """Yes/no decoder: the criterion by which passages are judged, if the prompt contains `{instruction}`. Null: the
    prompt's default."""

    num_layers: PositiveInt | None = None
    """Layer-wise decoder (bge-reranker-v2-minicpm-layerwise): number of layers to run, as `cutoff_layers` in the
    publisher's code. Fewer layers are faster, and their scores have another scale. Null: all."""

    head: LateInteractionHead | None = None
    """Late interaction: weights of the linear head. Null: as the checkpoint's format defines the score; for a ColBERT
    model, MaxSim as a sum over the query tokens, and for a sentence encoder, the weights fitted for
    all-MiniLM-L6-v2."""

    query_tokens: Annotated[int, Field(ge=8)] | None = None
    """Late interaction with a ColBERT model: length to which queries are cut and, if the model expands queries, filled
    with mask tokens. Null: as the checkpoint's files say, which is often only 32 tokens."""

    passage_cache_bytes: PositiveInt | None = None
    """Late interaction: size in bytes of each replica's cache of encoded passages; the least recently used passages are
    dropped first. Set it if the same passages are ranked again and again. A passage of 128 tokens takes about 100 KB
    (384 dimensions, bfloat16). On a GPU this memory is not available to batches. Null: no cache."""

    @model_validator(mode="after")
    def _prompts_are_complete(self) -> Self:
        template = self.prompt_template
        if template is not None and not ("{query}" in template and "{passage}" in template):
            raise ValueError("prompt_template must contain both {query} and {passage}")
        if self.yes_no is not None and self.yes_no_prompt is not None:
            raise ValueError("set yes_no or yes_no_prompt, not both")
        return self
