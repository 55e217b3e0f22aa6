"""Commands whose help shows an option without a value, such as `--json`, without a type."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "Group"]


class Command(TyperCommand):
    """A command. Typer's own help says `<bool>` after a flag, as if the flag took a value."""

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """A command with subcommands."""

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))


def _without_types(params: Any) -> Any:
    for param in params:
        if getattr(param, "is_flag", False):  # arguments have no such attribute
            param.metavar = ""
    return params
