"""Former name of `http.proxies.headers`, in `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` of clusters set up earlier."""

from rerank_service.http.proxies.headers import proxy_middlewares

__all__ = ["proxy_middlewares"]
