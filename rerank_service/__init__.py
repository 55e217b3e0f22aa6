"""A self-hosted, drop-in replacement for NVIDIA's NeMo Retriever text reranking API, on Ray Serve.

The folder is the path of a request: `ingress` -> `ranker` -> `model_router` -> `replica` -> `scheduler` ->
`engine` -> `ranking`. `app.build_app` binds it together; `config` holds every setting.
"""

from rerank_service.version import __version__

__all__ = ["__version__"]
