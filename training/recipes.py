"""What was trained, by name: three candidates of growing freedom, and what each starts from."""

from dataclasses import dataclass, field

__all__ = ["RECIPES", "Recipe"]

_SHARES = {"squad": 0.5, "medquad": 0.3, "nq": 0.2}
"""QAMR is left out for its questions without context; Debian, to be the dev split's unseen domain."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, beside the data and the weights it starts from."""

    num_steps: int
    num_frozen_layers: int
    """Of the encoder's six, from below. The embeddings are always frozen."""

    num_cross_layers: int = 0
    """Upper layers whose passage tokens also read the query's. 0: late interaction."""

    encoder_rate: float = 3e-5
    head_rate: float = 2e-3
    scalar_rate: float = 2e-2
    """Of the head's weights of cosine, MaxSim and found tokens, which are of order 1 to 10, and of the gates."""

    num_groups: int = 8
    num_passages: int = 4
    """Of a group in a step: the positive and hard negatives drawn anew."""

    lengthened_share: float = 0.25
    window_tokens: int = 256
    seed: int = 7
    shares: dict[str, float] = field(default_factory=lambda: dict(_SHARES))


RECIPES = {
    "head": Recipe(num_steps=150, num_frozen_layers=6),
    "late": Recipe(num_steps=180, num_frozen_layers=3),
    "later": Recipe(num_steps=240, num_frozen_layers=3, encoder_rate=4e-5, seed=8),
    "cross": Recipe(num_steps=80, num_frozen_layers=3, num_cross_layers=3, num_passages=6),
}
"""The head alone; the head with the upper layers; the same for longer, from `late`; as a cross-encoder, from `late`."""
