"""Training recipes by name, from the fewest trainable weights to the most."""

from dataclasses import dataclass, field

__all__ = ["RECIPES", "Recipe"]

_SHARES = {"squad": 0.5, "medquad": 0.3, "nq": 0.2}
"""Sources and their shares. QAMR is excluded because its questions lack context; Debian is excluded because it is the
unseen domain of the dev split."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run, apart from data and initial weights."""

    num_steps: int
    num_frozen_layers: int
    """Number of frozen layers, of the encoder's six, from the lowest. Embeddings are always frozen."""

    num_cross_layers: int = 0
    """Number of upper layers in which passage tokens attend to the query; 0: late interaction."""

    encoder_rate: float = 3e-5
    head_rate: float = 2e-3
    scalar_rate: float = 2e-2
    """Learning rate of the gates and of the head's weights. The weights of cosine, MaxSim and matches are about 1 to
    10."""

    num_groups: int = 8
    num_passages: int = 4
    """Number of a group's passages per step: the positive, and hard negatives drawn at random."""

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
"""`head` trains only the head; `late` also trains the upper layers. `later` continues `late`. `cross` starts from the
weights of `late` and trains a cross-encoder."""
