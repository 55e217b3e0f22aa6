"""The base of the four engine kinds: loads the tokenizer, the window and the weights from a checkpoint's folder."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from rerank_service.config import Dtype, EngineKind
from rerank_service.engine import loading
from rerank_service.engine.device import kernels
from rerank_service.engine.device.compile import (
    CompiledLayers,
    compile_layers,
    compiler_problem,
    prepare_compiler,
    wants_compile,
)
from rerank_service.engine.device.fixed_shape import FixedShape
from rerank_service.engine.device.flash_attention import use_flash_attention
from rerank_service.engine.device.graphs import GraphedStates, StatesOf, bucket_sizes, largest_bucket
from rerank_service.engine.device.launch import TorchEngine
from rerank_service.engine.linear.packed import can_pack
from rerank_service.engine.loading import Checkpoint
from rerank_service.engine.protocol import Aligner, PairT, RunAlone, TokenSpan, Truncate
from rerank_service.engine.text import tokenise
from rerank_service.errors import CheckpointError
from rerank_service.messages import Numerics

__all__ = ["CheckpointEngine"]

logger = logging.getLogger(__name__)


class CheckpointEngine(TorchEngine[PairT]):
    """An engine whose model, tokenizer and window come from a checkpoint."""

    kind: ClassVar[EngineKind]
    backbone: Any
    """The transformers model without its head."""
    _states: StatesOf
    _is_packed = True
    """Whether `_states` runs every batch."""
    _layers: CompiledLayers | None = None
    _compile_problem: str | None = None
    """Why the layers of this model are not compiled; null: nothing speaks against it."""
    assumptions: tuple[str, ...] = ()
    """Names of settings that neither the checkpoint's files nor the options state, so the engine assumes them."""
    unused_prefixes: tuple[str, ...] = ()
    """Prefixes of the names of tensors that are not part of `backbone`, if there are any."""
    unverified: str | None = None
    numerics: Numerics
    """See `Engine`; `build` sets both."""

    def __init__(self, checkpoint: Checkpoint, prompt: Sequence[str] = ()) -> None:
        """Loads everything except the weights. `prompt` holds the engine's own texts (see `tokenise.load_tokenizer`).

        Raises `CheckpointError`, as do the constructors of all engine kinds.
        """
        options = checkpoint.options
        super().__init__(checkpoint.device)
        self._checkpoint = checkpoint
        self._precision = checkpoint.precision
        use_flash_attention(options.flash_attention, self.device)
        self._tokenizer = tokenise.load_tokenizer(checkpoint.folder, options.special_tokens, prompt)
        self.precision = self._precision.name
        self.is_batch_invariant = self.device.type == "cpu" and can_pack(self._precision.states)
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

    @property
    def head_weights(self) -> dict[str, Any]:
        """The parameters of the head that training may change, by the names of their tensors. Empty: the head has no
        parameters, or shares them with the embeddings."""
        return {}

    def compile_layers(self, num_threads: int) -> None:
        """Compiles the layers if the options ask for it; for a GPU, after the first pass. If they cannot be compiled, a
        warning tells why. `num_threads` limits the compiler's processes."""
        options, states = self._checkpoint.options, self._states
        if not isinstance(states, GraphedStates):
            return
        if wants_compile(options, self._precision, is_packed=self._is_packed and self._compile_problem is None):
            if problem := self._compile_problem or compiler_problem(self.device):
                logger.warning("layers are not compiled: %s", problem)
            else:
                prepare_compiler(self.device, num_threads)
                self._layers = compile_layers(self.backbone, states, states.example, self.window_tokens)
        if self._precision.quantised is Dtype.FLOAT8 and self._layers is None:
            logger.warning(
                "float8 runs without compiled layers, which is slower than bfloat16 (estimated): install a compiler "
                "and set engine.compile to null, or set dtype: bfloat16"
            )

    def capture_graphs(self, peak_flops_per_s: float | None, run_alone: RunAlone) -> None:
        """Captures CUDA graphs for small batches, on a GPU, after the layers are compiled. `peak_flops_per_s` is the
        GPU's dense peak; null: unknown."""
        if isinstance(self._states, GraphedStates) and self.fixed_shape is None:
            num_layers = int(self.backbone.config.num_hidden_layers)
            largest = largest_bucket(num_layers, self.flops_per_token, peak_flops_per_s)
            self._states.capture_all(bucket_sizes(largest), self.window_tokens, run_alone)

    def graphs_off(self) -> AbstractContextManager[None]:
        """A context in which no batch uses a graph. A replay takes no memory, so it does not show what a pass needs."""
        return self._states.off() if isinstance(self._states, GraphedStates) else nullcontext()

    def end_start(self) -> None:
        """Ends the start: from now on, no layer is compiled. Models that run in rectangles are an exception, because
        batches of other shapes need other variants of their layers."""
        if self._layers is not None and self._is_packed:
            self._layers.seal()

    def fix_shape(self, batch_tokens: int) -> None:
        """Gives every pass the shape of a batch of `batch_tokens`, so that no logit depends on its batch. Raises
        `CheckpointError` if the engine also computes outside packed passes."""
        if not self._can_fix_shape:
            raise CheckpointError(
                f"engine.batch_invariant does not support this {self.kind.value} on a GPU: only decoders, and "
                "classifiers of the BERT family, run in passes of one shape; run the model on a CPU, or leave the "
                "setting out"
            )
        self.fixed_shape = FixedShape.for_batches(batch_tokens, self.window_tokens)
        self.is_batch_invariant = True

    @property
    def _can_fix_shape(self) -> bool:
        """Whether all computation is in packed passes, or row by row after them."""
        return self._is_packed

    @property
    def num_graphs(self) -> int:
        """Number of CUDA graphs; 0 on a CPU, or if they are turned off."""
        return len(self._states.buckets) if isinstance(self._states, GraphedStates) else 0

    @property
    def is_compiled(self) -> bool:
        """Whether the layers are compiled."""
        return self._layers is not None

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
