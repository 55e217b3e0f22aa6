"""Tables of `docs/reference/models.md`, made from the catalogue."""

from collections.abc import Callable

from rerank_service.tools.catalogue import CATALOGUE, KnownModel
from rerank_service.tools.catalogue.fit import gigabytes, needed_bytes

__all__ = ["SECTIONS"]

_SIZES = ("model", "engine", "parameters", "window", "memory on a GPU", "on a CPU in float32", "licence")
_SOURCES = ("model", "files", "query and passage", "logit", "note")
_CLAIMS = ("model", "languages", "published quality", "source of the figure")


def _table(heads: tuple[str, ...], row: Callable[[KnownModel], list[str]]) -> str:
    rows = (f"| {' | '.join(row(model))} |" for model in CATALOGUE)
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])


def _sizes_row(model: KnownModel) -> list[str]:
    engine = model.engine.value.replace("yes_no", "yes/no").replace("_", " ") if model.engine else "none"
    is_sized = model.num_parameters is not None and model.hidden_size is not None
    memory = [gigabytes(needed_bytes(model, on_gpu=gpu, is_half=gpu)) if is_sized else "" for gpu in (True, False)]
    return [
        f"`{model.name}`",
        f"{engine}: {model.architecture}",
        f"{model.num_parameters:,}" if model.num_parameters else "",
        f"{model.pair_tokens:,}",
        *memory,
        model.licence if model.is_commercial else f"{model.licence}, **not for commercial use**",
    ]


def _sources_row(model: KnownModel) -> list[str]:
    commit = f" at `{model.revision}`" if model.revision else ""
    template = f"`{model.template}`" if "{" in model.template else model.template
    return [
        f"`{model.name}`",
        f"`{model.hub_id}`{commit}" if model.hub_id else "no public files found",
        *(("", "") if model.refusal else (template, model.logit)),
        model.refusal or model.note,
    ]


def _claims_row(model: KnownModel) -> list[str]:
    codes = f": {', '.join(model.language_codes)}" if len(model.language_codes) > 2 else ""
    quality = (model.quality.text, model.quality.source) if model.quality else ("", "")
    return [f"`{model.name}`", f"{model.languages}{codes}", *quality]


SECTIONS: dict[str, Callable[[], str]] = {
    "models": lambda: _table(_SIZES, _sizes_row),
    "models-claims": lambda: _table(_CLAIMS, _claims_row),
    "models-sources": lambda: _table(_SOURCES, _sources_row),
}
