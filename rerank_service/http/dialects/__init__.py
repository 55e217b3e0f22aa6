"""Other vendors' reranking APIs as thin adapters: a body in, a `Call` of the core out, and the way back.

One file an API. None knows HTTP beyond a status, none knows models or replicas; `ingress/answering.py` does the work.
"""

from collections.abc import Mapping, Sequence

from rerank_service.config import DialectName
from rerank_service.http.dialects import cohere, infinity, jina, tei, vllm, voyage
from rerank_service.http.dialects.call import Body, Call, Dialect, Question, Refusal
from rerank_service.http.dialects.nim import NIM

__all__ = ["NIM", "RANKING_PATHS", "Body", "Call", "Dialect", "Question", "Refusal", "routes_of"]

_DIALECTS: Mapping[DialectName, Sequence[Dialect]] = {
    DialectName.JINA: (jina.RERANK,),
    DialectName.COHERE: (cohere.V1, cohere.V2),
    DialectName.TEI: (tei.RERANK,),
    DialectName.VLLM: (vllm.RERANK, vllm.SCORE),
    DialectName.INFINITY: (infinity.RERANK,),
    DialectName.VOYAGE: (voyage.RERANK,),
}


def routes_of(names: Sequence[DialectName]) -> dict[str, tuple[Dialect, ...]]:
    """The paths of these dialects, each with those that are spoken there in the order of `names`."""
    routes: dict[str, tuple[Dialect, ...]] = {}
    for name in names:
        for dialect in _DIALECTS[name]:
            for path in dialect.paths:
                routes[path] = (*routes.get(path, ()), dialect)
    return routes


RANKING_PATHS = (*NIM.paths, *routes_of(tuple(DialectName)))
"""Every path that may rank, as route templates; a configuration's `dialects` choose among them."""
