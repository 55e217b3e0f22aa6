"""A sentence encoder as a reranker: MaxSim over tokens, joined with the cosine of the mean vectors.

`logit = a * cosine + b * maxsim + c`. MaxSim is ColBERT's (arXiv 2004.12832), here divided by the number of
query tokens. Query and passages are encoded apart: a query once a request, each distinct passage once a batch, or
not at all if it is still in the cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from transformers import AutoConfig, AutoModel

from rerank_service.config import EngineConfig, LateInteractionHead
from rerank_service.engine import loading
from rerank_service.engine.device.forward import PACKED_ATTENTION
from rerank_service.engine.device.graphs import StatesOf, states_on
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.device.pack import PackedSequences, pack
from rerank_service.engine.device.pool import mean_pool
from rerank_service.engine.device.precision import Precision, resolve_precision
from rerank_service.engine.kinds.encoding_cache import EncodingCache
from rerank_service.engine.linear.calibration import calibration_pairs
from rerank_service.engine.linear.choose import prepare_linears
from rerank_service.engine.protocol import CacheCounts, EncodedPair, TokenIds, TokenSpan, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.errors import CheckpointError

__all__ = ["LateInteractionEngine", "LateInteractionPair", "load_late_interaction"]

_QUERY_CACHE_BYTES = 16 * 1024 * 1024
"""A request's query is encoded in its first batch and found here by the others: some hundred queries."""

_UNUSED_TENSORS = ("pooler.", "embeddings.position_ids")


@dataclass(frozen=True, slots=True, eq=False)
class LateInteractionPair(EncodedPair):
    """A passage, with the query that all pairs of a request share."""

    query_ids: TokenIds


class LateInteractionEngine(TorchEngine[LateInteractionPair]):
    """Encodes each distinct text of a batch once, packed, then compares token states."""

    def __init__(
        self,
        states: StatesOf,
        tokenizer: Any,
        device: torch.device,
        *,
        precision: Precision,
        head: LateInteractionHead,
        window_tokens: int,
        passage_cache_bytes: int | None = None,
    ) -> None:
        super().__init__(device)
        self.window_tokens = window_tokens
        self.head = head
        self._precision = precision
        self._queries: EncodingCache | None = EncodingCache(_QUERY_CACHE_BYTES)
        self._passages = None if passage_cache_bytes is None else EncodingCache(passage_cache_bytes)
        self._states = states
        self._tokenizer = tokenizer

    @property
    def description(self) -> str:
        return f"late_interaction on {self.device} in {self._precision}"

    @property
    def precision(self) -> str:
        return self._precision.name

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        return tokenise.token_spans(self._tokenizer, texts)

    def passage_room(self, query: str) -> int:
        """The same beside any query: they are read apart."""
        (empty,) = self.tokenise("", [""], Truncate.END)
        return self.window_tokens - len(empty.token_ids)

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[LateInteractionPair]:
        """The window holds for query and passage each; `num_tokens` counts both."""
        query_encoding, *encodings = tokenise.encode_texts(self._tokenizer, [query, *passages], add_special_tokens=True)
        query_ids, query_is_cut = self._cut(query_encoding, truncate, 0)
        pairs = []
        for index, encoding in enumerate(encodings):
            token_ids, is_cut = self._cut(encoding, truncate, index)
            num_tokens, is_truncated = len(query_ids) + len(token_ids), query_is_cut or is_cut
            pairs.append(LateInteractionPair(token_ids, num_tokens, is_truncated, query_ids, is_passage_cut=is_cut))
        return pairs

    def _cut(self, encoding: Any, truncate: Truncate, index: int) -> tuple[TokenIds, bool]:
        """Keeps the closing special token of a text that is cut: `[CLS] ... [SEP]` is what encoders know."""
        token_ids, is_cut = tokenise.cut_to_window(encoding.ids, self.window_tokens, truncate, index)
        if is_cut:
            token_ids[-1] = encoding.ids[-1]
        return token_ids, is_cut

    def forward(self, pairs: Sequence[LateInteractionPair]) -> torch.Tensor:
        """Logits `[B]`; pairs of several queries may be mixed."""
        texts = _DistinctTexts()
        queries = [texts.add(pair.query_ids) for pair in pairs]
        num_queries = len(texts.sequences)  # these come first
        passages = [texts.add(pair.token_ids) for pair in pairs]
        states = self._encode(texts.sequences, num_queries)
        logits = torch.empty(len(pairs), device=self.device)
        for query in dict.fromkeys(queries):
            rows = [row for row, other in enumerate(queries) if other == query]
            logits[rows] = self._compare(states, query, [passages[row] for row in rows])
        return logits

    @property
    def cache_counts(self) -> CacheCounts:
        if self._passages is None:
            return CacheCounts(0, 0)
        return CacheCounts(self._passages.hits, self._passages.misses)

    @property
    def cache_bytes(self) -> int:
        return sum(cache.max_bytes for cache in (self._queries, self._passages) if cache is not None)

    @contextmanager
    def caches_off(self) -> Iterator[None]:
        kept = self._queries, self._passages
        self._queries = self._passages = None
        try:
            yield
        finally:
            self._queries, self._passages = kept

    def _encode(self, sequences: Sequence[TokenIds], num_queries: int) -> "_TokenStates":
        """Runs the encoder on what no cache has. The first `num_queries` texts are queries."""
        caches = [self._queries if index < num_queries else self._passages for index in range(len(sequences))]
        known = [None if cache is None else cache.get(text) for cache, text in zip(caches, sequences, strict=True)]
        missing = [index for index, states in enumerate(known) if states is None]
        if missing:
            packed = pack([sequences[index] for index in missing], self.device)
            new = self._states(packed).split([len(sequences[index]) for index in missing])
            for index, states in zip(missing, new, strict=True):
                known[index] = states
                if (cache := caches[index]) is not None:
                    cache.put(sequences[index], states)
        return _TokenStates([states for states in known if states is not None])

    def _compare(self, states: "_TokenStates", query: int, passages: list[int]) -> torch.Tensor:
        """Logits `[P]` of one query with its passages.

        Passage by passage and row by row: one product over all of them would be rounded by their number.
        """
        words = states.words_of(query).T  # [H, Nq]
        best = [(states.tokens_of(passage) @ words).amax(0) for passage in passages]  # P times [Nq]
        maxsim = torch.stack(best).mean(1)  # [P]
        cosine = (states.means[passages] * states.means[query]).sum(1)  # [P]
        return self.head.cosine_weight * cosine + self.head.maxsim_weight * maxsim + self.head.bias


class _DistinctTexts:
    """Token id sequences, each kept once."""

    def __init__(self) -> None:
        self.sequences: list[TokenIds] = []
        self._index: dict[bytes, int] = {}

    def add(self, token_ids: TokenIds) -> int:
        index = self._index.setdefault(token_ids.tobytes(), len(self.sequences))
        if index == len(self.sequences):
            self.sequences.append(token_ids)
        return index


class _TokenStates:
    """Unit-length float32 states of every token `[T, H]` and of every text's mean `[S, H]`."""

    def __init__(self, raw: Sequence[torch.Tensor]) -> None:
        lengths = [len(states) for states in raw]
        joined = torch.cat(list(raw)).float()
        self.means = F.normalize(mean_pool(joined, torch.tensor(lengths, device=joined.device)), dim=-1)
        self._tokens = F.normalize(joined, dim=-1)
        self._bounds = (0, *accumulate(lengths))

    def tokens_of(self, text: int) -> torch.Tensor:
        """States of all tokens of a text, `[L, H]`."""
        return self._tokens[self._bounds[text] : self._bounds[text + 1]]

    def words_of(self, text: int) -> torch.Tensor:
        """States without the first and the last token (CLS, SEP), unless nothing else is there."""
        start, end = self._bounds[text], self._bounds[text + 1]
        return self._tokens[start + 1 : end - 1] if end - start > 2 else self._tokens[start:end]


def load_late_interaction(folder: Path, options: EngineConfig, window_tokens: int | None) -> LateInteractionEngine:
    """Any encoder whose attention transformers lets us replace; made for all-MiniLM-L6-v2."""
    raw = loading.read_model_config(folder)
    device = loading.resolve_device(options.device)
    precision = resolve_precision(options.dtype, device)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"transformers has no encoder for {folder} ({error})") from error
    encoder = loading.load_weights(
        AutoModel,
        folder,
        config,
        precision=precision,
        device=device,
        attention=PACKED_ATTENTION,
        ignored_prefixes=_UNUSED_TENSORS,
    )
    states = states_on(encoder, options)
    engine = LateInteractionEngine(
        states,
        tokenise.load_tokenizer(folder, options.special_tokens),
        device,
        precision=precision,
        head=options.head,
        passage_cache_bytes=options.passage_cache_bytes,
        window_tokens=loading.resolve_window(
            window_tokens, _published_window(folder) or tokenise.model_max_length(folder), loading.max_positions(raw)
        ),
    )
    prepare_linears(encoder, precision, lambda: states(_calibration_batch(engine)))  # past the cache of encodings
    return engine


def _calibration_batch(engine: LateInteractionEngine) -> PackedSequences:
    return pack([pair.token_ids for pair in calibration_pairs(engine.tokenise)], engine.device)


def _published_window(folder: Path) -> int | None:
    """`max_seq_length` of a sentence-transformers checkpoint: what it was trained and is normally run with."""
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    length = loading.read_json(path).get("max_seq_length")
    return None if length is None else int(length)
