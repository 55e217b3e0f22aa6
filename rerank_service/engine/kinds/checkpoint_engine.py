"""The base of the four engine kinds: loads the tokenizer, the window and the weights from a checkpoint's folder."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from rerank_service.config import EngineKind
from rerank_service.engine import loading
from rerank_service.engine.device import kernels
from rerank_service.engine.device.graphs import StatesOf
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.device.precision import resolve_precision
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import Aligner, PairT, TokenSpan, Truncate
from rerank_service.engine.text import tokenise

__all__ = ["CheckpointEngine"]


class CheckpointEngine(TorchEngine[PairT]):
    """An engine whose model, tokenizer and window come from a checkpoint."""

    kind: ClassVar[EngineKind]
    backbone: Any
    """The transformers model without its head."""
    _states: StatesOf

    def __init__(self, checkpoint: Checkpoint, prompt: Sequence[str] = ()) -> None:
        """Loads everything except the weights. `prompt` holds the engine's own texts (see `tokenise.load_tokenizer`).

        Raises `CheckpointError`, as do the constructors of all engine kinds.
        """
        options = checkpoint.options
        super().__init__(loading.resolve_device(options.device))
        self._checkpoint = checkpoint
        self._precision = resolve_precision(options.dtype, self.device)
        self._tokenizer = tokenise.load_tokenizer(checkpoint.folder, options.special_tokens, prompt)
        self.precision = self._precision.name
        self.description = f"{self.kind.value} on {self.device} in {self._precision}"
        self.window_tokens = loading.resolve_window(
            checkpoint.window_tokens, self._published_window(), loading.max_positions(checkpoint.raw)
        )

    @abstractmethod
    def tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[PairT]:
        """See `Engine`."""

    def passage_room(self, query: str) -> int:
        """See `Engine`. By default, the window minus the tokens of a pair with an empty passage."""
        (empty,) = self.tokenise(query, [""], Truncate.END)
        return self.window_tokens - len(empty.token_ids)

    def token_spans(self, texts: Sequence[str]) -> list[list[TokenSpan]]:
        """See `Engine`. Uses `encode_batch`, because the faster `encode_batch_fast` returns no spans."""
        return [encoding.offsets for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    @property
    def aligner(self) -> Aligner[PairT] | None:
        """Null; an engine that compares tokens overrides this."""
        return None

    def _published_window(self) -> int | None:
        return tokenise.model_max_length(self._checkpoint.folder)

    def _load_weights(
        self,
        model_class: Any,
        config: PreTrainedConfig,
        *,
        attention: str | None,
        ignored_prefixes: Iterable[str] = (),
    ) -> Any:
        """Loads the checkpoint's weights (see `loading.load_weights`) if the device has the kernels for them."""
        kernels.refuse_unknown_kernels(self.device, self._precision, is_packed=attention is not None)
        return loading.load_weights(
            model_class,
            self._checkpoint.folder,
            config,
            precision=self._precision,
            device=self.device,
            attention=attention,
            ignored_prefixes=ignored_prefixes,
        )
