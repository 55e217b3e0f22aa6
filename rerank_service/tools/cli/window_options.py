"""The options of every command that can rank long passages in windows."""

from typing import Annotated

import typer

from rerank_service.messages import DEFAULT_OVERLAP_TOKENS, MIN_WINDOW_TOKENS, PassageWindows

__all__ = ["DEFAULT_OVERLAP_TOKENS", "MaxWindows", "OverlapTokens", "WindowTokens", "passage_windows"]

MaxWindows = Annotated[int, typer.Option(min=1, help="Windows of a long passage, the best of which counts; 1 cuts it.")]
WindowTokens = Annotated[
    int | None,
    typer.Option(min=MIN_WINDOW_TOKENS, help="Tokens of the passage in a window; as many as fit if not given."),
]
OverlapTokens = Annotated[int, typer.Option(min=0, help="Tokens that a window shares with the one before.")]


def passage_windows(max_windows: int, window_tokens: int | None, overlap_tokens: int) -> PassageWindows | None:
    """Null where passages are to be cut."""
    return PassageWindows(max_windows, window_tokens, overlap_tokens) if max_windows > 1 else None
