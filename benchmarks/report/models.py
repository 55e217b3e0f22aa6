"""Tables of `docs/models.md`, made from the catalogue."""

from collections.abc import Callable, Mapping

from rerank_service.tools.catalogue import CATALOGUE, KnownModel
from rerank_service.tools.catalogue.fit import gigabytes, needed_bytes

__all__ = ["SECTIONS"]

_SIZES = ("model", "engine", "parameters", "window", "memory on a GPU", "on a CPU in float32", "licence")
_SOURCES = ("model", "files", "languages", "query and passage", "logit", "note")


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
        model.languages,
        *(("", "") if model.refusal else (template, model.logit)),
        model.refusal or model.note,
    ]


SECTIONS: Mapping[str, Callable[[], str]] = {
    "models": lambda: _table(_SIZES, _sizes_row),
    "models-sources": lambda: _table(_SOURCES, _sources_row),
}
