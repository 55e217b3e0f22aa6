"""The catalogue of published rerankers: names, source, licence, size, prompt and window of each.

The entries are in `models.yaml`. `rerank-service models` lists them, and `rerank-service config` writes configurations
from them.
"""

from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from rerank_service.config import Dtype, EngineKind, YesNoPromptName

__all__ = ["CATALOGUE", "KnownModel", "PublishedQuality", "known_model"]


class PublishedQuality(BaseModel):
    """One published figure of a model's quality, which this project did not measure.

    Figures are comparable only if measure, collections and candidates are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
    """The measure, for example nDCG@10."""

    collections: str
    """The judged collections."""

    value: float
    """The figure, from 0 to 1."""

    source: str
    """The publication that has the figure."""

    @property
    def text(self) -> str:
        """The figure with its measure and collections, in one line."""
        return f"{self.measure} {f'{self.value:.4g}'.lstrip('0')} on {self.collections}"


class KnownModel(BaseModel):
    """A published model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The model's name on the command line."""

    id: str
    """Model id that clients send."""

    aliases: tuple[str, ...] = ()
    """Other names that clients send."""

    application: str
    """Name of the Serve application for the model's replicas, if the model has its own application."""

    source: str
    """Default location of the model's files: `package:NAME`, or the name of a folder in the models folder."""

    hub_id: str | None = None
    """The model's repository on the model hub; null: no public repository was found."""

    revision: str | None = None
    """Commit of the repository to download, in 40 hexadecimal digits; null: no public source names a commit."""

    kind: EngineKind = EngineKind.AUTO
    """Engine to set in a configuration; `auto` if the model's files identify the engine."""

    yes_no_prompt: YesNoPromptName | None = None
    """Prompt to set in a configuration; null if the model has none, or if its files identify it."""

    engine: EngineKind | None = None
    """Engine that runs the model; null: no engine runs it, for the reason in `refusal`."""

    refusal: str | None = None
    """The reason why no engine runs the model."""

    architecture: str = ""
    """Model family, number of layers and width."""

    num_parameters: int | None = None
    """Number of parameters; null: not published."""

    hidden_size: int | None = None
    """Width of a token's hidden state."""

    intermediate_size: int | None = None
    """Width of the feed-forward blocks."""

    laid_out_heads: int = 0
    """Number of attention heads whose weight matrices are stored in memory, as in DeBERTa; 0 for fused attention."""

    window_tokens: int | None = None
    """Window to set in a configuration; null: the model's files state the window."""

    longest_tokens: int = 512
    """Window that the model's files state, if `window_tokens` is null."""

    num_gpus: int | float = 0
    """GPUs per replica; 0 for a model made for CPUs."""

    dtype: Dtype = Dtype.AUTO
    """Precision for the hardware that the model is made for."""

    max_batch_tokens: int | None = None
    """Tokens per forward pass on the hardware that the model is made for; null: the service's default."""

    template: str = "the tokenizer's own pair format"
    """How query and passage are joined into one text."""

    logit: str = "the model's raw, unbounded logit; sigmoid gives a probability"
    """Meaning of the model's logit."""

    languages: str = ""
    """Languages that the publisher claims, in words; empty: no claim was found."""

    language_codes: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages that the publisher lists. Empty: the publisher lists none, even if it claims
    many."""

    quality: PublishedQuality | None = None
    """A published figure of the model's quality; null: no figure with a readable source was found."""

    licence: str = ""
    """The licence, as stated by the publisher."""

    is_commercial: bool = True
    """Whether the licence allows commercial use."""

    note: str = ""
    """A note for operators, in one line."""

    @property
    def engine_settings(self) -> dict[str, str]:
        """Settings of `engine` that the model's files do not imply."""
        settings = {"kind": None if self.kind is EngineKind.AUTO else self.kind, "yes_no_prompt": self.yes_no_prompt}
        return {name: str(value) for name, value in settings.items() if value is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """The model's name, id and aliases."""
        return (self.name, self.id, *self.aliases)

    @property
    def package(self) -> str | None:
        """Name of the Python package with the model's files; null if there is no such package."""
        return self.source.removeprefix("package:") if self.source.startswith("package:") else None

    def may_know(self, language: str) -> bool:
        """Whether the publisher lists the language with this ISO 639-1 code, or claims languages without a list."""
        return language in self.language_codes or self.is_vague

    @property
    def is_vague(self) -> bool:
        """Whether the publisher claims languages without listing them."""
        return bool(self.languages) and not self.language_codes

    @property
    def pair_tokens(self) -> int:
        """Length of the longest pair, in tokens."""
        return self.window_tokens or self.longest_tokens


_TABLE = yaml.safe_load(files(__package__).joinpath("models.yaml").read_text(encoding="utf-8"))
CATALOGUE = tuple(map(KnownModel.model_validate, _TABLE["models"]))


def known_model(name: str) -> KnownModel | None:
    """The model with this name, id or alias, ignoring case; null if there is none."""
    wanted = name.casefold()
    return next((model for model in CATALOGUE if wanted in map(str.casefold, model.names)), None)
