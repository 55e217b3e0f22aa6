"""Published rerankers and what is known about them beyond their files: names, source, licence, size, prompt, window.

The entries are in `models.yaml`. `rerank-service models` lists them and `rerank-service config` writes configurations
from them.
"""

from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from rerank_service.config import Dtype, EngineKind

__all__ = ["CATALOGUE", "KnownModel", "known_model"]


class KnownModel(BaseModel):
    """One published model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Its name on the command line."""

    id: str
    """Model id that clients send."""

    aliases: tuple[str, ...] = ()
    """Other names that clients send."""

    application: str
    """Serve application of its replicas, if the model has its own application."""

    source: str
    """Default location of its files: `package:NAME`, or the name of a folder in the models folder."""

    hub_id: str | None = None
    """Its repository on the model hub. Null: no public repository was found."""

    revision: str | None = None
    """Commit of that repository to download, 40 digits. Null: no public source names one."""

    kind: EngineKind = EngineKind.AUTO
    """Engine to name in a configuration; `auto` where the model's files identify it."""

    engine: EngineKind | None = None
    """Engine that runs it. Null: no engine here does, for the reason in `refusal`."""

    refusal: str | None = None
    """Why no engine here runs it."""

    architecture: str = ""
    """Family, layers and width."""

    num_parameters: int | None = None
    """Null: not published."""

    hidden_size: int | None = None
    """Width of a token's hidden state."""

    intermediate_size: int | None = None
    """Width of a feed-forward block."""

    laid_out_heads: int = 0
    """Attention heads whose weight matrices are held in memory, as in DeBERTa; 0 for fused attention."""

    window_tokens: int | None = None
    """Window to configure. Null: its files state it."""

    longest_tokens: int = 512
    """Window that its files state, where `window_tokens` is null."""

    num_gpus: int | float = 0
    """GPUs of one replica; 0 for a model made for CPUs."""

    dtype: Dtype = Dtype.AUTO
    """Precision suited to the hardware it is made for."""

    max_batch_tokens: int | None = None
    """Tokens of one forward pass on that hardware. Null: the service's default."""

    template: str = "the tokenizer's own pair format"
    """How query and passage are joined into one text."""

    logit: str = "the model's raw, unbounded logit; sigmoid gives a probability"
    """What its logit means."""

    licence: str = ""
    """As stated by its publisher."""

    is_commercial: bool = True
    """Whether the licence allows commercial use."""

    note: str = ""
    """What an operator should know, in one line."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, id and aliases."""
        return (self.name, self.id, *self.aliases)

    @property
    def package(self) -> str | None:
        """Name of the Python package that contains its files; null if none does."""
        return self.source.removeprefix("package:") if self.source.startswith("package:") else None

    @property
    def pair_tokens(self) -> int:
        """Tokens of the longest pair."""
        return self.window_tokens or self.longest_tokens


_TABLE = yaml.safe_load(files(__package__).joinpath("models.yaml").read_text(encoding="utf-8"))
CATALOGUE = tuple(map(KnownModel.model_validate, _TABLE["models"]))


def known_model(name: str) -> KnownModel | None:
    """The model with this name, id or alias, ignoring case; null if there is none."""
    wanted = name.casefold()
    return next((model for model in CATALOGUE if wanted in map(str.casefold, model.names)), None)
