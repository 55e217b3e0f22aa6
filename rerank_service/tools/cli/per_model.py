"""Options with one value for all models or one for each: `--replicas 1:4`, `--replicas MODEL=2:8`."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from rerank_service.tools.catalogue import KnownModel
from rerank_service.tools.cli.console import fail
from rerank_service.tools.deployment.serve_yaml import Bounds

__all__ = ["amount", "bounds", "by_model", "refuse_repeated"]

_Value = TypeVar("_Value")


def by_model(
    option: str, texts: Sequence[str] | None, models: Sequence[KnownModel], parse: Callable[[str], _Value]
) -> Callable[[KnownModel], _Value | None]:
    """Parses options of the form `[MODEL=]VALUE` into a function that returns a model's value, or null if it has none.

    Ends the program if a value is malformed or MODEL is not among `models`.
    """
    for_all: list[_Value] = []
    for_one: dict[str, _Value] = {}
    for text in texts or ():
        name, is_one, value = text.rpartition("=")
        if not is_one:
            for_all.append(parse(value))
            continue
        wanted = name.casefold()
        owner = next((model for model in models if wanted in _spellings(model)), None)
        if owner is None:
            raise fail(f"{option} {text}: {name!r} is not among the models given")
        for_one[owner.id] = parse(value)
    return lambda model: for_one.get(model.id, for_all[-1] if for_all else None)


def bounds(text: str, option: str = "--replicas") -> Bounds:
    """Parses `MIN:MAX`, or `N` for a fixed number. Ends the program if `option` cannot have this value."""
    fewest, _, most = text.partition(":") if ":" in text else (text, ":", text)
    if not (fewest.isdecimal() and most.isdecimal()):
        raise fail(f"{option} {text}: {text!r} is not a number of replicas: N or MIN:MAX, such as 2 or 1:8")
    found = Bounds(int(fewest), int(most))
    if found.max_replicas == 0:
        raise fail(f"{option} {text}: the maximum number of replicas must be greater than 0")
    if found.min_replicas > found.max_replicas:
        raise fail(f"{option} {text}: the minimum {fewest} is greater than the maximum {most}; write MIN:MAX")
    return found


def amount(text: str) -> float:
    """Parses a number. Ends the program if it is malformed."""
    try:
        return float(text)
    except ValueError:
        raise fail(f"{text!r} is not a number") from None


def refuse_repeated(models: Sequence[KnownModel]) -> None:
    """Ends the program if two models have the same id or application."""
    for names in ([model.application for model in models], [model.id.casefold() for model in models]):
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise fail(
                f"more than one model is called {', '.join(repeated)}; list each model only once, or give one of them "
                "another id with ID=SOURCE"
            )


def _spellings(model: KnownModel) -> set[str]:
    return {name.casefold() for name in (*model.names, model.application)}
