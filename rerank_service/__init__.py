"""A self-hosted, drop-in replacement for NVIDIA's NeMo Retriever text reranking API, on Ray Serve.

The folders are the path of a request: `http` -> `routing` -> `replica` -> `engine`, and back.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
