"""The prompts that yes/no decoders were published with, by the family of their config.json.

A config.json says nothing of a prompt: the family stands for it, and `engine.yes_no` overrides. It must not know how a
prompt is tokenised.
"""

from rerank_service.config import YesNoPrompt

__all__ = ["YES_NO_PROMPTS"]

_QWEN3_RERANKER = YesNoPrompt(
    parts=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    yes_word="yes",
    no_word="no",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)
"""Of Qwen/Qwen3-Reranker-0.6B, -4B and -8B: the code on their model cards, as openvinotoolkit/openvino.genai on GitHub
has it in tests/python_tests/utils/qwen3_reranker_utils.py, and vLLM in its documentation. The published score is the
softmax over the two words: the sigmoid of our logit."""

_MXBAI_RERANK_V2 = YesNoPrompt(
    parts=(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        "query: {query}",
        "\n",
        "document: {passage}",
        "\n",
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    yes_word="1",
    no_word="0",
)
"""Of mixedbread-ai/mxbai-rerank-base-v2 and -large-v2: github.com/mixedbread-ai/mxbai-rerank at commit 03324ea,
mxbai_rerank/mxbai_rerank_v2.py, whose `predict` gives our logit. With an instruction its second part would be
"instruction: ...\nquery: {query}"."""

_BGE_RERANKER_V2_GEMMA = YesNoPrompt(
    parts=(
        "<bos>",
        "A: {query}",
        "\n",
        "B: {passage}",
        "\n",
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
        "prediction of either 'Yes' or 'No'.",
    ),
    yes_word="Yes",
)
"""Of BAAI/bge-reranker-v2-gemma: github.com/FlagOpen/FlagEmbedding at commit 0dff36c,
FlagEmbedding/inference/reranker/decoder_only/base.py, which reads the logit of "Yes" and no other."""

YES_NO_PROMPTS = {"qwen3": _QWEN3_RERANKER, "qwen2": _MXBAI_RERANK_V2, "gemma": _BGE_RERANKER_V2_GEMMA}
"""By `model_type`."""
