"""Reconstructs the command line of a running command, for the first line of a file that the command writes."""

import shlex
from collections.abc import Sequence

import typer

__all__ = ["command_line"]


def command_line(context: typer.Context, omitted: Sequence[str] = ()) -> str:
    """The command line in a shell's syntax, without default values and without the parameters in `omitted`."""
    parts = ["rerank-service", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if name in omitted or not value or value == parameter.get_default(context):
            continue
        if parameter.param_type_name == "argument":
            parts += value
        elif value is True:
            parts.append(parameter.opts[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                parts += [parameter.opts[0], f"{one:g}" if isinstance(one, float) else str(one)]
    return shlex.join(parts)
