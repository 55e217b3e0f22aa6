"""A self-hosted, drop-in replacement for NVIDIA's NeMo Retriever text reranking API, on Ray Serve.

The folders are the path of a request: `http` -> `routing` -> `replica` -> `engine`, and back. `Reranker` ranks in a
Python process, without a service; it is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_service.tools.reranker import Reranker

__all__ = ["Reranker", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Reranker":
        return import_module("rerank_service.tools.reranker").Reranker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
