"""Adapters for reranking APIs: each turns a body into a `RankingCall`, and a ranking into the answer of its API.

Each API has one file. Of HTTP, a dialect uses only the status. A dialect must not depend on models or replicas;
`http/endpoint.py` calls the models.
"""

from collections.abc import Mapping, Sequence

from rerank_service.config import DialectName
from rerank_service.http.dialects import cohere, infinity, jina, tei, vllm, voyage
from rerank_service.http.dialects.call import Body, Dialect, RankingCall, RankingQuery, Refusal
from rerank_service.http.dialects.nim import NIM

__all__ = ["NIM", "RANKING_PATHS", "Body", "Dialect", "RankingCall", "RankingQuery", "Refusal", "routes_of"]

_DIALECTS: Mapping[DialectName, Sequence[Dialect]] = {
    DialectName.JINA: (jina.RERANK,),
    DialectName.COHERE: (cohere.V1, cohere.V2),
    DialectName.TEI: (tei.RERANK,),
    DialectName.VLLM: (vllm.RERANK, vllm.SCORE),
    DialectName.INFINITY: (infinity.RERANK,),
    DialectName.VOYAGE: (voyage.RERANK,),
}


def routes_of(names: Sequence[DialectName]) -> dict[str, tuple[Dialect, ...]]:
    """Dialects by path. Dialects that share a path are in the order of `names`."""
    routes: dict[str, tuple[Dialect, ...]] = {}
    for name in names:
        for dialect in _DIALECTS[name]:
            for path in dialect.paths:
                routes[path] = (*routes.get(path, ()), dialect)
    return routes


RANKING_PATHS = (*NIM.paths, *routes_of(tuple(DialectName)))
"""Route templates of all ranking paths, including the paths of dialects that the configuration does not enable."""
