"""What the configuration and the wire format share of reading pydantic's problems."""

from pydantic_core import ErrorDetails

__all__ = ["without_echoes"]


def without_echoes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leaves out that a list is too short where that only follows from its entries being wrong."""
    owners = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in owners]
