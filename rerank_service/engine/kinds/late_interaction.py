"""Engine for ColBERT models, which compare the tokens of query and passage, and for sentence encoders used like them.

`logit = a * cosine + b * maxsim + c`. MaxSim is defined as in ColBERT (arXiv 2004.12832); for sentence encoders, it is
divided by the number of query tokens. `late_interaction_format` reads from the checkpoint which weights, markers and
lengths apply. Queries and passages are encoded separately: a query once per request, and each distinct passage once per
batch, or not at all if it is cached. On request, the engine also reports which passage token gave each query token its
maximum.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from transformers import AutoModel

from rerank_service.config import EngineKind
from rerank_service.engine import loading
from rerank_service.engine.device.encoding_cache import DistinctTexts, EncodingCache
from rerank_service.engine.device.forward import PACKED_ATTENTION
from rerank_service.engine.device.graphs import states_on
from rerank_service.engine.device.maxsim import Comparison, compare
from rerank_service.engine.device.pack import pack
from rerank_service.engine.kinds.checkpoint_engine import CheckpointEngine
from rerank_service.engine.kinds.late_interaction_format import SideFormat, read_format
from rerank_service.engine.kinds.token_matches import MatchRecord, TokenAligner, words
from rerank_service.engine.kinds.token_vectors import TokenVectors, read_projection
from rerank_service.engine.linear.calibration import calibration_pairs
from rerank_service.engine.linear.prepare import prepare_linears
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import Aligner, CacheCounts, EncodedPair, TokenIds, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.engine.text.sides import Side
from rerank_service.errors import CheckpointError, PairTooLong

__all__ = ["LateInteractionEngine", "LateInteractionPair"]

_QUERY_CACHE_BYTES = 16 * 1024 * 1024
"""Size of the query cache, enough for a few hundred queries. A request's first batch encodes the query; the
request's other batches find the query in this cache."""

_UNUSED_TENSORS = ("pooler.", "embeddings.position_ids", "bert.pooler.", "bert.embeddings.position_ids", "linear.")
_LOCAL_FAMILIES = ("modernbert",)
"""Families (`model_type`) in which some layers see only near tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class LateInteractionPair(EncodedPair):
    """A tokenised passage, and the tokenised query that all pairs of a request share."""

    query_ids: TokenIds
    query_seen: int
    """Number of query tokens that attention sees: all but the mask tokens of an expanded query, unless they are
    seen."""
    record: MatchRecord | None = field(default=None, kw_only=True)
    """The forward pass fills this record. Null: no matches are requested."""


class LateInteractionEngine(CheckpointEngine[LateInteractionPair]):
    """Encodes each distinct text of a batch once, in a packed forward pass, then compares token states.

    Works with any encoder whose attention transformers can replace; made for all-MiniLM-L6-v2.
    """

    kind = EngineKind.LATE_INTERACTION

    def __init__(self, checkpoint: Checkpoint) -> None:
        options = checkpoint.options
        self.format = read_format(checkpoint.folder, checkpoint.raw)
        sides = self.format.query, self.format.passage
        super().__init__(checkpoint, [text for side in sides for text in (side.prompt, side.prefix) if text])
        self.head = options.head or self.format.head
        self.compares_in_chunks = self.device.type != "cpu"
        """Whether all pairs are compared in a few large kernels. On a CPU, comparing pair by pair is faster."""
        self._queries: EncodingCache | None = EncodingCache(_QUERY_CACHE_BYTES)
        self._passages = None if options.passage_cache_bytes is None else EncodingCache(options.passage_cache_bytes)
        self._hides_expansion = self.format.query.is_expanded and not self.format.attends_expansion
        self._query_side, self._passage_side = self._sides(checkpoint)
        self._first_position = loading.first_position(checkpoint.raw)
        self.backbone = self._load_weights(
            AutoModel,
            loading.transformers_config(checkpoint.folder),
            attention=PACKED_ATTENTION,
            ignored_prefixes=_UNUSED_TENSORS,
        )
        if any(getattr(module, "is_causal", False) for module in self.backbone.modules()):
            raise CheckpointError(
                f"{checkpoint.folder} is a language model ({checkpoint.raw.get('model_type')}), in which a token sees "
                "only earlier ones; late interaction runs encoders, such as BERT, XLM-RoBERTa and ModernBERT"
            )
        self._vectors = self._token_vectors(checkpoint) if self.format.is_colbert else None
        if self._hides_expansion or checkpoint.raw.get("model_type") in _LOCAL_FAMILIES:
            self._compile_problem = "they see other tokens in each layer or batch, and compiled layers would be remade"
        self._states = states_on(self.backbone, options)
        prepare_linears(self.backbone, self._precision, self._calibrate)

    def _sides(self, checkpoint: Checkpoint) -> tuple[Side, Side]:
        """The tokenising of queries and of passages. Raises `CheckpointError` if the tokenizer lacks a token."""
        files, tokenizer = self.format, self._tokenizer
        names = ("mask_token", "eos_token", "pad_token")
        mask_id = tokenise.named_token_id(checkpoint.folder, tokenizer, names) if files.query.is_expanded else None
        if files.query.is_expanded and mask_id is None:
            raise CheckpointError(f"{checkpoint.folder} expands queries, but its tokenizer names no mask token")
        query_tokens = checkpoint.options.query_tokens or files.query.max_tokens or self.window_tokens
        positions = loading.max_positions(checkpoint.raw)
        if positions is not None and query_tokens > positions:
            raise CheckpointError(f"queries of {query_tokens} tokens are longer than the model's {positions} positions")
        return (
            self._side(files.query, query_tokens, mask_id),
            self._side(files.passage, self.window_tokens),
        )

    def _side(self, side: SideFormat, max_tokens: int, mask_id: int | None = None) -> Side:
        prefix_id = None
        if side.prefix is not None:
            prefix_id = self._tokenizer.token_to_id(tokenise.prompt_text(self._tokenizer, side.prefix))
            if prefix_id is None:
                raise CheckpointError(
                    f"{self._checkpoint.folder} marks texts with the token {side.prefix!r}, which its tokenizer does "
                    "not have: these are the files of a model that has not been trained with it"
                )
        return Side(
            max_tokens,
            prefix_id,
            mask_id,
            self._hides_expansion,
            tokenise.prompt_text(self._tokenizer, side.prompt),
            self.format.lowers,
            self.format.is_colbert,
        )

    def _token_vectors(self, checkpoint: Checkpoint) -> TokenVectors:
        width = int(self.backbone.config.hidden_size)
        projection = read_projection(checkpoint.folder, self.format.projections, self.device, width)
        ids = [self._tokenizer.token_to_id(word) for word in self.format.skipped_words]
        # As in pylate, a word that is no token stands for the unknown token, if the tokenizer has one.
        unknown = tokenise.named_token_id(checkpoint.folder, self._tokenizer, ["unk_token"])
        found = {unknown if token_id is None else token_id for token_id in ids}
        return TokenVectors(projection, frozenset(token_id for token_id in found if token_id is not None))

    @property
    def _can_fix_shape(self) -> bool:
        return False  # texts are compared outside the passes

    def _calibrate(self) -> None:
        passages = [pair.token_ids for pair in calibration_pairs(self.tokenise)]
        self._states(pack(passages, self.device, first_position=self._first_position))  # `score` would fill the caches

    def _published_window(self) -> int | None:
        """Length of passages: of a ColBERT model as its files say, and `max_seq_length` of a sentence-transformers
        checkpoint, with which such a model is trained and used."""
        if self.format.passage.max_tokens is not None:
            return self.format.passage.max_tokens
        path = self._checkpoint.folder / "sentence_bert_config.json"
        length = loading.read_json(path).get("max_seq_length") if path.is_file() else None
        return int(length) if length else super()._published_window()

    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[LateInteractionPair]:
        """See `Engine`. Query and passage each have a whole window; `num_tokens` counts both."""
        texts = [query, *passages]
        if self.format.is_colbert:
            texts = [self._query_side.prepared(query), *map(self._passage_side.prepared, passages)]
        query_encoding, *encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=True)
        query_ids, query_seen, query_is_cut = _fitted(self._query_side, query_encoding.ids, truncate, 0)
        pairs = []
        for index, encoding in enumerate(encodings):
            token_ids, _, is_cut = _fitted(self._passage_side, encoding.ids, truncate, index)
            num_tokens, is_truncated = len(query_ids) + len(token_ids), query_is_cut or is_cut
            pairs.append(
                LateInteractionPair(token_ids, num_tokens, is_truncated, query_ids, query_seen, is_passage_cut=is_cut)
            )
        return pairs

    def forward(self, pairs: Sequence[LateInteractionPair]) -> torch.Tensor:
        """Float32 logits `[B]`; a batch may mix pairs of several queries."""
        texts = DistinctTexts()
        queries = [texts.add(pair.query_ids, pair.query_seen) for pair in pairs]
        num_queries = len(texts.sequences)  # the queries come first
        if self._vectors is not None:  # other tokens count in a passage than in a query of the same tokens
            texts.forget()
        passages = [texts.add(pair.token_ids, len(pair.token_ids)) for pair in pairs]
        raw = self._encode(texts, num_queries)
        if self.compares_in_chunks:
            comparison = Comparison(
                raw, queries, passages, self.window_tokens, self._vectors is None, self.head.maxsim_is_sum
            )
            return self._compare_in_chunks(comparison, [pair.record for pair in pairs])
        states = _TokenStates(raw, drops_specials=self._vectors is None)
        logits = torch.empty(len(pairs), device=self.device)
        for query in dict.fromkeys(queries):
            rows = [row for row, other in enumerate(queries) if other == query]
            logits[rows] = self._compare(
                states, query, [passages[row] for row in rows], [pairs[row].record for row in rows]
            )
        return logits

    @property
    def aligner(self) -> Aligner[LateInteractionPair]:
        """See `Engine`."""
        return TokenAligner(self._tokenizer, self._query_side, self._passage_side, self._vectors)

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

    def _encode(self, texts: DistinctTexts, num_queries: int) -> list[torch.Tensor]:
        """Token states `[L, H]` of each text. Runs the encoder on the texts that are not cached. The first
        `num_queries` texts are queries."""
        sequences = texts.sequences
        caches = [self._queries if index < num_queries else self._passages for index in range(len(sequences))]
        known = [None if cache is None else cache.get(text) for cache, text in zip(caches, sequences, strict=True)]
        missing = [index for index, states in enumerate(known) if states is None]
        groups = [missing]
        if self._hides_expansion:  # a pass of their own, because only queries have hidden tokens
            groups = [[index for index in missing if (index < num_queries) is is_query] for is_query in (True, False)]
        for group in filter(None, groups):
            packed = pack(
                [sequences[index] for index in group],
                self.device,
                first_position=self._first_position,
                num_seen=[texts.num_seen[i] for i in group]
                if self._hides_expansion and group[0] < num_queries
                else None,
            )
            states = self._states(packed)
            if self._vectors is not None:
                new = self._vectors.of(states, [sequences[i] for i in group], [i >= num_queries for i in group])
            else:
                new = list(states.split([len(sequences[index]) for index in group]))
            added: dict[EncodingCache, list[tuple[TokenIds, torch.Tensor]]] = {}
            for index, vectors in zip(group, new, strict=True):
                known[index] = vectors
                if (cache := caches[index]) is not None:
                    added.setdefault(cache, []).append((sequences[index], vectors))
            for cache, entries in added.items():
                cache.put_all(entries)
        return [states for states in known if states is not None]

    def _compare_in_chunks(self, comparison: Comparison, records: Sequence[MatchRecord | None]) -> torch.Tensor:
        """Logits `[B]`, as `_compare` computes them for each query. Fills the records that are not null."""
        wanted = [record is not None for record in records]
        cosine, maxsim, matches = compare(comparison, self.device, wanted)
        for pair, match in matches.items():
            record = records[pair]
            assert record is not None  # noqa: S101 - only wanted pairs have matches
            record.fill(*match)
        return self.head.cosine_weight * cosine + self.head.maxsim_weight * maxsim + self.head.bias

    def _compare(
        self, states: "_TokenStates", query: int, passages: list[int], records: Sequence[MatchRecord | None]
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
        maxsim = torch.stack(best).sum(1) if self.head.maxsim_is_sum else torch.stack(best).mean(1)  # [P]
        cosine = (states.means[passages] * states.means[query]).sum(1)  # [P]
        return self.head.cosine_weight * cosine + self.head.maxsim_weight * maxsim + self.head.bias


class _FittedText(NamedTuple):
    token_ids: TokenIds
    num_seen: int
    """Number of tokens that attention sees."""
    is_cut: bool


def _fitted(side: Side, ids: Sequence[int], truncate: Truncate, index: int) -> _FittedText:
    """Inserts the prefix, and cuts or fills a text. A cut text keeps its closing special token, because encoders are
    trained on `[CLS] ... [SEP]`."""
    token_ids = np.asarray(ids, np.int32)
    is_cut = len(token_ids) > side.max_tokens - (side.prefix_id is not None)
    if is_cut:
        if truncate is Truncate.NONE:
            raise PairTooLong(index, len(token_ids) + side.max_tokens - side.room, side.max_tokens)
        token_ids = np.append(token_ids[: side.room - 1], token_ids[-1:])
    if side.prefix_id is not None:
        token_ids = np.insert(token_ids, 1, side.prefix_id)
    num_seen = len(token_ids)
    if side.mask_id is not None:
        token_ids = np.pad(token_ids, (0, side.max_tokens - num_seen), constant_values=side.mask_id)
    return _FittedText(token_ids, num_seen if side.hides_mask else len(token_ids), is_cut)


class _TokenStates:
    """Float32 vectors of unit length: token states `[T, H]`, and the mean state of each text `[S, H]`."""

    def __init__(self, raw: Sequence[torch.Tensor], *, drops_specials: bool) -> None:
        self._drops_specials = drops_specials
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
        """States of the query tokens that count: in a sentence encoder, without the first and last."""
        tokens = self.tokens_of(text)
        return tokens[words(len(tokens))] if self._drops_specials else tokens
