"""Adapters for reranking APIs: each turns a body into a `RankingCall`, and a ranking into the answer of its API.

Each API has one file. Of HTTP, a dialect uses only the status. A dialect must not depend on models or replicas;
`http/endpoint.py` calls the models.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rerank_service.config import DialectName, PathConfig, RankingPath
from rerank_service.errors import ConfigError
from rerank_service.http.dialects import cohere, infinity, jina, tei, vllm, voyage
from rerank_service.http.dialects.call import Body, Dialect, RankingCall, RankingQuery, ReadingRules, Refusal, rules_of
from rerank_service.http.dialects.nim import NIM

__all__ = [
    "NIM",
    "RANKING_PATHS",
    "Body",
    "Dialect",
    "RankingCall",
    "RankingQuery",
    "ReadingRules",
    "Refusal",
    "routes_of",
    "rules_of",
]

_DIALECTS: Mapping[DialectName, Sequence[Dialect]] = {
    DialectName.JINA: (jina.RERANK,),
    DialectName.COHERE: (cohere.V1, cohere.V2),
    DialectName.TEI: (tei.RERANK,),
    DialectName.VLLM: (vllm.RERANK, vllm.SCORE),
    DialectName.INFINITY: (infinity.RERANK,),
    DialectName.VOYAGE: (voyage.RERANK,),
}


def routes_of(
    names: Sequence[DialectName], paths: Mapping[RankingPath, PathConfig] = MappingProxyType({})
) -> dict[str, tuple[Dialect, ...]]:
    """Dialects by path. Dialects that share a path are in the order of `names`, after the dialect that the path
    prefers. Raises `ConfigError` if a path does not have the dialect that it prefers."""
    routes: dict[str, tuple[Dialect, ...]] = {}
    for name in names:
        for dialect in _DIALECTS[name]:
            for path in dialect.paths:
                routes[path] = (*routes.get(path, ()), dialect)
    for path, exception in paths.items():
        if (preferred := exception.prefer) is None:
            continue
        spoken = routes.get(path, ())
        if preferred not in {dialect.name for dialect in spoken}:
            known = ", ".join(dialect.name for dialect in spoken) or "none"
            raise ConfigError(f"paths.{path}.prefer: {path} has no API {preferred}; it has: {known}")
        routes[path] = tuple(sorted(spoken, key=lambda dialect: dialect.name != preferred))
    return routes


RANKING_PATHS = (*NIM.paths, *routes_of(tuple(DialectName)))
"""Route templates of all ranking paths, including the paths of dialects that the configuration does not enable."""
