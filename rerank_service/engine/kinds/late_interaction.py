"""Engine that reranks with a sentence encoder: MaxSim over tokens, combined with the cosine of the mean vectors.

`logit = a * cosine + b * maxsim + c`. MaxSim is defined as in ColBERT (arXiv 2004.12832), but divided by the number of
query tokens. Queries and passages are encoded separately: a query once per request, and each distinct passage once per
batch, or not at all if it is cached. On request, the engine also reports which passage token gave each query token its
maximum.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from transformers import AutoModel

from rerank_service.config import EngineKind
from rerank_service.engine import loading
from rerank_service.engine.device import cuda
from rerank_service.engine.device.encoding_cache import EncodingCache
from rerank_service.engine.device.forward import PACKED_ATTENTION
from rerank_service.engine.device.graphs import states_on
from rerank_service.engine.device.maxsim import Comparison, compare
from rerank_service.engine.device.pack import pack
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from rerank_service.engine.linear.calibration import calibration_pairs
from rerank_service.engine.linear.prepare import prepare_linears
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import Aligner, CacheCounts, EncodedPair, TokenIds, TokenSpan, Truncate
from rerank_service.errors import PairTooLong
from rerank_service.messages import TokenMatch

__all__ = ["LateInteractionEngine", "LateInteractionPair"]

_QUERY_CACHE_BYTES = 16 * 1024 * 1024
"""Size of the query cache, enough for a few hundred queries. A request's first batch encodes the query; the
request's other batches find the query in this cache."""

_UNUSED_TENSORS = ("pooler.", "embeddings.position_ids")


class _MatchRecord:
    """The best match of each query token that MaxSim counts, on the device."""

    __slots__ = ("similarities", "tokens")

    def __init__(self) -> None:
        self.similarities = self.tokens = torch.empty(0)

    def fill(self, similarities: torch.Tensor, tokens: torch.Tensor) -> None:
        """Records the largest cosine of each query token, and the passage token that has it; both `[Nq]`."""
        self.similarities, self.tokens = similarities, tokens


@dataclass(frozen=True, slots=True, eq=False)
class LateInteractionPair(EncodedPair):
    """A tokenised passage, and the tokenised query that all pairs of a request share."""

    query_ids: TokenIds
    record: _MatchRecord | None = field(default=None, kw_only=True)
    """The forward pass fills this record. Null: no matches are requested."""


class LateInteractionEngine(CheckpointEngine[LateInteractionPair]):
    """Encodes each distinct text of a batch once, in a packed forward pass, then compares token states.

    Works with any encoder whose attention transformers can replace; made for all-MiniLM-L6-v2.
    """

    kind = EngineKind.LATE_INTERACTION

    def __init__(self, checkpoint: Checkpoint) -> None:
        options = checkpoint.options
        super().__init__(checkpoint)
        self.head = options.head
        self.compares_in_chunks = self.device.type != "cpu"
        """Whether all pairs are compared in a few large kernels. On a CPU, comparing pair by pair is faster."""
        self._queries: EncodingCache | None = EncodingCache(_QUERY_CACHE_BYTES)
        self._passages = None if options.passage_cache_bytes is None else EncodingCache(options.passage_cache_bytes)
        self.backbone = self._load_weights(
            AutoModel,
            loading.transformers_config(checkpoint.folder),
            attention=PACKED_ATTENTION,
            ignored_prefixes=_UNUSED_TENSORS,
        )
        self._states = states_on(self.backbone, options)
        prepare_linears(self.backbone, self._precision, self._calibrate)

    @property
    def _can_fix_shape(self) -> bool:
        return False  # texts are compared outside the passes

    def _calibrate(self) -> None:
        passages = [pair.token_ids for pair in calibration_pairs(self.tokenise)]
        self._states(pack(passages, self.device))  # not `score`, which would fill the caches

    def _published_window(self) -> int | None:
        """`max_seq_length` of a sentence-transformers checkpoint: the model is trained and used with this length."""
        path = self._checkpoint.folder / "sentence_bert_config.json"
        length = loading.read_json(path).get("max_seq_length") if path.is_file() else None
        return int(length) if length else super()._published_window()

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[LateInteractionPair]:
        """See `Engine`. Query and passage each have a whole window; `num_tokens` counts both."""
        query_encoding, *encodings = self._tokenizer.encode_batch_fast([query, *passages], add_special_tokens=True)
        query_ids, query_is_cut = self._cut(query_encoding, truncate, 0)
        pairs = []
        for index, encoding in enumerate(encodings):
            token_ids, is_cut = self._cut(encoding, truncate, index)
            num_tokens, is_truncated = len(query_ids) + len(token_ids), query_is_cut or is_cut
            pairs.append(LateInteractionPair(token_ids, num_tokens, is_truncated, query_ids, is_passage_cut=is_cut))
        return pairs

    def _cut(self, encoding: Any, truncate: Truncate, index: int) -> tuple[TokenIds, bool]:
        """Cuts a text but keeps its closing special token, because encoders are trained on `[CLS] ... [SEP]`."""
        token_ids = np.asarray(encoding.ids, np.int32)
        is_cut = len(token_ids) > self.window_tokens
        if is_cut:
            if truncate is Truncate.NONE:
                raise PairTooLong(index, len(token_ids), self.window_tokens)
            token_ids = np.append(token_ids[: self.window_tokens - 1], token_ids[-1:])
        return token_ids, is_cut

    def forward(self, pairs: Sequence[LateInteractionPair]) -> torch.Tensor:
        """Float32 logits `[B]`; a batch may mix pairs of several queries."""
        texts = _DistinctTexts()
        queries = [texts.add(pair.query_ids) for pair in pairs]
        num_queries = len(texts.sequences)  # the queries come first
        passages = [texts.add(pair.token_ids) for pair in pairs]
        raw = self._encode(texts.sequences, num_queries)
        if self.compares_in_chunks:
            comparison = Comparison(raw, queries, passages, self.window_tokens)
            return self._compare_in_chunks(comparison, [pair.record for pair in pairs])
        states = _TokenStates(raw)
        logits = torch.empty(len(pairs), device=self.device)
        for query in dict.fromkeys(queries):
            rows = [row for row, other in enumerate(queries) if other == query]
            logits[rows] = self._compare(
                states, query, [passages[row] for row in rows], [pairs[row].record for row in rows]
            )
        return logits

    @property
    def aligner(self) -> Aligner[LateInteractionPair]:
        """The engine itself."""
        return self

    def recording(self, pairs: Sequence[LateInteractionPair]) -> list[LateInteractionPair]:
        """See `Aligner`."""
        return [replace(pair, record=_MatchRecord()) for pair in pairs]

    @cuda.device_errors()
    def matches(
        self, query: str, passages: Sequence[str], pairs: Sequence[LateInteractionPair]
    ) -> list[list[TokenMatch]]:
        """See `Aligner`. Leaves out query tokens without characters."""
        query_spans, *passages_spans = map(self._kept_spans, self._tokenizer.encode_batch([query, *passages]))
        query_spans = query_spans[_words(len(query_spans))]
        records = [pair.record for pair in pairs if pair.record is not None]
        tokens = torch.stack([record.tokens for record in records]).tolist()  # one wait for the device for all pairs
        similarities = torch.stack([record.similarities for record in records]).tolist()
        found = []
        for spans, *matches in zip(passages_spans, tokens, similarities, strict=True):
            best = zip(query_spans, *matches, strict=True)
            found.append(
                [
                    TokenMatch(word, _with_characters(spans[token]), cosine)
                    for word, token, cosine in best
                    if _with_characters(word)
                ]
            )
        return found

    def _kept_spans(self, encoding: Any) -> list[TokenSpan]:
        """Spans of the tokens that `_cut` keeps."""
        spans: list[TokenSpan] = encoding.offsets
        return spans if len(spans) <= self.window_tokens else [*spans[: self.window_tokens - 1], spans[-1]]

    @property
    def cache_counts(self) -> CacheCounts:
        """See `Engine`."""
        if self._passages is None:
            return CacheCounts(0, 0)
        return CacheCounts(self._passages.hits, self._passages.misses)

    @property
    def cache_bytes(self) -> int:
        """See `Engine`."""
        return sum(cache.max_bytes for cache in (self._queries, self._passages) if cache is not None)

    @contextmanager
    def caches_off(self) -> Iterator[None]:
        """See `Engine`."""
        kept = self._queries, self._passages
        self._queries = self._passages = None
        try:
            yield
        finally:
            self._queries, self._passages = kept

    def _encode(self, sequences: Sequence[TokenIds], num_queries: int) -> list[torch.Tensor]:
        """Token states `[L, H]` of each text. Runs the encoder on the texts that are not cached. The first
        `num_queries` texts are queries."""
        caches = [self._queries if index < num_queries else self._passages for index in range(len(sequences))]
        known = [None if cache is None else cache.get(text) for cache, text in zip(caches, sequences, strict=True)]
        missing = [index for index, states in enumerate(known) if states is None]
        if missing:
            packed = pack([sequences[index] for index in missing], self.device)
            new = self._states(packed).split([len(sequences[index]) for index in missing])
            added: dict[EncodingCache, list[tuple[TokenIds, torch.Tensor]]] = {}
            for index, states in zip(missing, new, strict=True):
                known[index] = states
                if (cache := caches[index]) is not None:
                    added.setdefault(cache, []).append((sequences[index], states))
            for cache, texts in added.items():
                cache.put_all(texts)
        return [states for states in known if states is not None]

    def _compare_in_chunks(self, comparison: Comparison, records: Sequence[_MatchRecord | None]) -> torch.Tensor:
        """Logits `[B]`, as `_compare` computes them for each query. Fills the records that are not null."""
        wanted = [record is not None for record in records]
        cosine, maxsim, matches = compare(comparison, self.device, wanted)
        for pair, match in matches.items():
            record = records[pair]
            assert record is not None  # noqa: S101 - only wanted pairs have matches
            record.fill(*match)
        return self.head.cosine_weight * cosine + self.head.maxsim_weight * maxsim + self.head.bias

    def _compare(
        self, states: "_TokenStates", query: int, passages: list[int], records: Sequence[_MatchRecord | None]
    ) -> torch.Tensor:
        """Logits `[P]` of one query with its passages. Fills the records that are not null.

        Computes passage by passage and row by row: in one product over all passages, rounding would depend on their
        number.
        """
        words = states.words_of(query).T  # [H, Nq]
        best = []  # P times [Nq]
        for passage, record in zip(passages, records, strict=True):
            similarities = states.tokens_of(passage) @ words  # [L, Nq]
            best.append(similarities.amax(0))
            if record is not None:
                record.fill(*similarities.max(0))
        maxsim = torch.stack(best).mean(1)  # [P]
        cosine = (states.means[passages] * states.means[query]).sum(1)  # [P]
        return self.head.cosine_weight * cosine + self.head.maxsim_weight * maxsim + self.head.bias


class _DistinctTexts:
    """Collects sequences of token ids without duplicates."""

    def __init__(self) -> None:
        self.sequences: list[TokenIds] = []
        self._index: dict[bytes, int] = {}

    def add(self, token_ids: TokenIds) -> int:
        index = self._index.setdefault(token_ids.tobytes(), len(self.sequences))
        if index == len(self.sequences):
            self.sequences.append(token_ids)
        return index


class _TokenStates:
    """Float32 vectors of unit length: token states `[T, H]`, and the mean state of each text `[S, H]`."""

    def __init__(self, raw: Sequence[torch.Tensor]) -> None:
        lengths = [len(states) for states in raw]
        joined = torch.cat(list(raw)).float()
        segments = torch.tensor(lengths, device=joined.device)
        # `unsafe` skips a check of the lengths, because the check makes the host wait for the device.
        self.means = F.normalize(torch.segment_reduce(joined, "mean", lengths=segments, unsafe=True), dim=-1)
        self._tokens = F.normalize(joined, dim=-1)
        self._bounds = (0, *accumulate(lengths))

    def tokens_of(self, text: int) -> torch.Tensor:
        """States of all tokens of a text, `[L, H]`."""
        return self._tokens[self._bounds[text] : self._bounds[text + 1]]

    def words_of(self, text: int) -> torch.Tensor:
        """States of a text's tokens without the first and last (CLS, SEP), or of all tokens if the text has no
        others."""
        tokens = self.tokens_of(text)
        return tokens[_words(len(tokens))]


def _words(num_tokens: int) -> slice:
    """The tokens of a query that MaxSim counts: all but the first and last (CLS, SEP), or all if there are no
    others."""
    return slice(1, num_tokens - 1) if num_tokens > 2 else slice(num_tokens)


def _with_characters(span: TokenSpan) -> TokenSpan | None:
    return span if span[0] < span[1] else None
