"""`verify` accepts every engine in every precision, and rejects models with errors that occur in practice."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    LlamaForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from typer.testing import CliRunner

from rerank_service.config import Dtype, EngineKind, ModelConfig
from rerank_service.engine import Truncate
from rerank_service.engine.device.forward import PACKED_ATTENTION, PACKED_CAUSAL_ATTENTION, packed_attention
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.device.precision import multiplies_int8
from rerank_service.engine.linear import prepare
from rerank_service.errors import CheckpointError
from rerank_service.tools.cli.main import app
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from rerank_service.tools.verify.recorded import RECORDED, RecordedLogits, recorded_of
from rerank_service.tools.verify.reference import load_reference
from rerank_service.tools.verify.served import EnginePath, ServedLogits
from rerank_service.tools.verify.texts import VerificationQuery
from rerank_service.tools.verify.verdict import TOLERANCES, Verdict, figures_of, half_step
from rerank_service.tools.verify.verify import ReferenceRun, compare_served, run_reference, verify
from tests.http_servers import running
from tests.local_service import LocalReplica, local_api
from tests.models import EMBEDDED, local_model
from tests.quantise import quantise

LATE = "late_interaction"
MODELS = [*(architecture.value for architecture in Architecture), LATE]
CONFIG = str(Path(__file__).parents[4] / "serve_config.yaml")
SHORT_WINDOW = 256
"""Window in tokens that makes a run several times faster than the 1,024 of the tiny decoders."""
runner = CliRunner()


@pytest.fixture(scope="module")
def folders(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint for each engine and architecture; late interaction has BERT without a head."""
    folder = tmp_path_factory.mktemp("verify") / LATE
    shutil.copytree(checkpoints["bert"], folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name.startswith("bert.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, architectures=["BertModel"])
    # With other seeds, the logits of these two are closer to 0, so rounding errors are a larger share of them.
    others = {
        name: make_checkpoint(folder.with_name(name), Architecture(name), "tiny", dtype="float32", seed=seed)
        for name, seed in (("gte", 3), ("minicpm", 2))
    }
    return {**checkpoints, **others, LATE: folder}


@pytest.fixture(scope="module")
def reference_of(folders: dict[str, Path]) -> Callable[[str], ReferenceRun]:
    return cache(lambda name: run_reference(local_model(folders[name])))


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def served(run: ReferenceRun, model: ModelConfig) -> Verdict:
    path = EnginePath(model)
    try:
        return compare_served(run, path)
    finally:
        path.close()


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.is_passed}


@pytest.mark.parametrize("dtype", [*TOLERANCES])
@pytest.mark.parametrize("name", MODELS)
def test_every_engine_is_faithful_in_every_precision(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun], name: str, dtype: Dtype
) -> None:
    if dtype is Dtype.INT8 and not multiplies_int8():
        pytest.skip("this processor does not multiply 8-bit integers")
    run = reference_of(name)

    verdict = served(run, local_model(folders[name], engine={"dtype": dtype}))

    assert verdict.is_faithful, verdict
    assert verdict.dtype is dtype
    assert verdict.tokens.num_cut >= 1
    assert 0.6 < verdict.figures.ordered_alike <= 1.0


def of_another_seed(folders: dict[str, Path], target: Path) -> ModelConfig:
    return local_model(make_checkpoint(target, Architecture.LLAMA_BIDIREC, "tiny", dtype="float32", seed=1))


def with_one_layer_changed(folders: dict[str, Path], target: Path) -> ModelConfig:
    shutil.copytree(folders["llama_bidirec"], target)
    tensors = load_file(target / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] *= -1
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return local_model(target)


def with_engine(folders: dict[str, Path], target: Path, **settings: Any) -> ModelConfig:
    return local_model(folders["llama_bidirec"], engine=settings)


MUTANTS: dict[str, tuple[Callable[[dict[str, Path], Path], ModelConfig], str, str]] = {
    "other weights": (of_another_seed, "largest difference", "check the checkpoint"),
    "one layer's weights": (with_one_layer_changed, "largest difference", "check the checkpoint"),
    "last-token pooling": (partial(with_engine, pooling="last"), "largest difference", "pooling"),
    "first-token pooling": (partial(with_engine, pooling="cls"), "largest difference", "pooling"),
    "sum instead of mean": (partial(with_engine, pooling="weighted_avg"), "largest difference", "pooling"),
    "temperature": (partial(with_engine, temperature=1.1), "mean difference", "logits are 0.9"),
    "template": (
        partial(with_engine, prompt_template="question:{query} passage:{passage}"),
        "tokens",
        "check tokenizer, template and window",
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_decoder_is_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun], tmp_path: Path, name: str, dtype: str
) -> None:
    make, check, words = MUTANTS[name]
    model = make(folders, tmp_path / "mutant")
    model = model.model_copy(update={"engine": model.engine.model_copy(update={"dtype": Dtype(dtype)})})

    verdict = served(reference_of("llama_bidirec"), model)

    assert not verdict.is_faithful
    assert check in failed(verdict), verdict
    assert words in verdict.reason
    assert "batch invariance" not in failed(verdict)


def causal(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: None,
    scaling: float | None,
    packed: PackedSequences,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The attention of a model whose `is_causal = False` is lost."""
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            *(tensor[:, :, start:end] for tensor in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
        )
        for start, end in zip(packed.bounds, packed.bounds[1:], strict=False)
    ]
    repeated = outputs[-1][:, :, -1:].expand(-1, -1, query.size(2) - packed.bounds[-1], -1)
    return torch.cat([*outputs, repeated], dim=2).transpose(1, 2), None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama_bidirec", "mistral", "bert"])
def test_a_causal_model_is_rejected(
    folders: dict[str, Path],
    reference_of: Callable[[str], ReferenceRun],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: str,
) -> None:
    run = reference_of(name)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, PACKED_ATTENTION, causal)
    monkeypatch.setattr(prepare, "replace_encoder_layers", lambda _, **__: None)  # these layers ask no registry

    verdict = served(run, local_model(folders[name], engine={"dtype": dtype}))

    assert "largest difference" in failed(verdict), verdict
    assert "direction of attention" in verdict.reason


def test_another_window_length_is_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun]
) -> None:
    verdict = served(reference_of("bert"), local_model(folders["bert"], window_tokens=500))

    assert "tokens" in failed(verdict)
    assert verdict.tokens.num_different == verdict.tokens.num_cut == 6


def test_another_late_interaction_head_is_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun]
) -> None:
    model = local_model(folders[LATE], engine={"head": {"maxsim_weight": 9.0}})

    assert "largest difference" in failed(served(reference_of(LATE), model))


def test_another_instruction_of_a_yes_no_decoder_is_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun]
) -> None:
    model = local_model(folders["qwen3"], engine={"instruction": "Find passages that contradict the query"})

    assert {"tokens", "largest difference"} <= failed(served(reference_of("qwen3"), model))


def test_a_yes_no_decoder_that_sees_later_tokens_is_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reference_of("qwen3")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, PACKED_CAUSAL_ATTENTION, packed_attention)

    assert "largest difference" in failed(served(run, local_model(folders["qwen3"])))


def test_a_yes_no_decoder_converted_to_a_classifier_is_faithful(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun], tmp_path: Path
) -> None:
    """The conversion is that of tomaarsen/Qwen3-Reranker-0.6B-seq-cls; the reference is another transformers class."""
    original = run_reference(local_model(folders["qwen3"]))
    config = Qwen3Config.from_pretrained(folders["qwen3"], num_labels=1, pad_token_id=0)
    causal_model = Qwen3ForCausalLM.from_pretrained(folders["qwen3"])
    classifier = Qwen3ForSequenceClassification(config)
    classifier.model.load_state_dict(causal_model.model.state_dict())
    tokenizer = Tokenizer.from_file(str(folders["qwen3"] / "tokenizer.json"))
    yes, no = (causal_model.lm_head.weight[tokenizer.token_to_id(word)] for word in ("yes", "no"))
    classifier.score.weight.data[0] = yes - no
    classifier.save_pretrained(tmp_path / "classifier")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["qwen3"] / name, tmp_path / "classifier")

    converted = run_reference(local_model(tmp_path / "classifier"))

    for one, other in zip(original.expected, converted.expected, strict=True):
        assert one.tokens == other.tokens
        assert one.logits == pytest.approx(other.logits, abs=1e-5)
    assert served(converted, local_model(tmp_path / "classifier")).is_faithful


class Jumpy(EnginePath):
    """An engine whose logits depend slightly on the batch."""

    def answer(
        self, questions: Sequence[VerificationQuery], at_once: bool, on_answered: Callable[[int], None]
    ) -> list[ServedLogits]:
        answers = super().answer(questions, at_once, on_answered)
        return [one._replace(logits=tuple(logit + 1e-6 * at_once for logit in one.logits)) for one in answers]


def test_a_logit_that_depends_on_its_batch_is_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun]
) -> None:
    path = Jumpy(local_model(folders["bert"]))
    verdict = compare_served(reference_of("bert"), path)
    path.close()

    assert failed(verdict) == {"batch invariance"}
    assert "depends on the other pairs in its batch" in verdict.reason


def test_the_files_take_precedence_over_the_configuration(folders: dict[str, Path], tmp_path: Path) -> None:
    """The configuration applies only if the files state no value, as for the 4B."""
    published = change_config(shutil.copytree(folders["mistral"], tmp_path / "says"), pooling="avg", temperature=1.0)
    options = {"pooling": "last", "temperature": 2.0, "prompt_template": "{passage}\n{query}"}
    silent, spoken = (local_model(folder, engine=options) for folder in (folders["mistral"], published))

    assert served(run_reference(silent), silent).is_faithful
    assert failed(served(run_reference(spoken), spoken)) == {"largest difference", "mean difference"}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "qwen3"])  # its prompt has 120 tokens
def test_a_window_that_truncates_queries_is_faithful(folders: dict[str, Path], name: str) -> None:
    model = local_model(folders[name], window_tokens=80 if name == "minicpm" else 16)  # its prompt has 57 tokens

    assert served(run_reference(model), model).is_faithful


def test_a_yes_no_prompt_with_a_separate_query_part_is_faithful(folders: dict[str, Path]) -> None:
    prompt = {"parts": ["q {query}", "\n", "p {passage}", "\nyes or no: "], "yes_word": "yes", "no_word": "no"}
    model = local_model(folders["qwen3"], window_tokens=64, engine={"yes_no": prompt})

    verdict = served(run_reference(model), model)

    assert verdict.is_faithful, verdict


@pytest.mark.parametrize("name", MODELS)
def test_both_readings_of_special_tokens_are_distinguished(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun], name: str
) -> None:
    parsing = local_model(folders[name], engine={"special_tokens": "parse"})

    faithful, otherwise = served(run_reference(parsing), parsing), served(reference_of(name), parsing)

    assert faithful.is_faithful, faithful
    assert "tokens" in failed(otherwise), otherwise


class PassageFirst(EnginePath):
    """Truncates a classifier's passages like transformers' `only_second`, and the query if it is too long by itself."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model)
        engine: Any = self._engine
        self._whole, self._window = engine.tokenise, engine.window_tokens
        engine.window_tokens = 1_000_000
        engine.tokenise = self._tokenise

    def _tokenise(self, query: str, passages: Sequence[str], truncate: Truncate) -> list[Any]:
        return [
            replace(pair, token_ids=ids, num_tokens=len(ids), type_ids=pair.type_ids[: len(ids)])
            for pair in self._whole(query, passages, truncate)
            for ids in [pair.token_ids[: self._window]]
        ]


def test_a_query_that_pushes_passages_out_of_the_window_is_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun]
) -> None:
    path = PassageFirst(local_model(folders["bert"]))
    verdict = compare_served(reference_of("bert"), path)
    path.close()

    assert {"tokens", "largest difference"} <= failed(verdict), verdict


def test_a_head_with_a_bias_is_faithful(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "biased", Architecture.MISTRAL, "tiny", dtype="float32", head_bias=True)

    assert served(run_reference(local_model(folder)), local_model(folder)).is_faithful


def test_the_reference_is_freed_before_the_served_model_is_loaded(folders: dict[str, Path]) -> None:
    model = local_model(folders["llama_bidirec"])
    alive: list[int] = []

    def open_served() -> EnginePath:
        alive.append(sum(type(one) is LlamaForSequenceClassification for one in gc.get_objects()))
        return EnginePath(model)

    assert verify(model, open_served).is_faithful
    assert alive == [0]


@pytest.mark.parametrize("name", ["qwen3", "bert", "llama_bidirec", LATE])
def test_a_quantised_checkpoint_is_faithful(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    quantised, plain = quantise(folders[name], tmp_path, "packed int4 with zero points")
    run = run_reference(local_model(quantised))

    assert served(run, local_model(quantised)).is_faithful
    assert served(run, local_model(plain)).is_faithful
    assert not served(run, local_model(folders[name])).is_faithful


def test_a_missing_tensor_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["llama_bidirec"], tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "score.weight"}, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lacks tensors: score\.weight"):
        run_reference(local_model(folder))


def test_pickled_weights_are_refused_like_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bert"], tmp_path / "pick")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"has only pickled weights \(pytorch_model.bin\), which can run code"):
        run_reference(local_model(folder))


def test_every_engine_has_a_reference(folders: dict[str, Path]) -> None:
    for kind in EngineKind:
        if kind is EngineKind.AUTO:
            continue
        with pytest.raises(CheckpointError, match=r"cannot (load|read)"):
            load_reference(kind, folders["bert"] / "nowhere", local_model(folders["bert"]), torch.device("cpu"))


def recorded_from(question: VerificationQuery, logits: Sequence[float]) -> RecordedLogits:
    """Rounds logits as a record in bfloat16 would."""
    written = torch.tensor(logits).bfloat16().tolist()
    return RecordedLogits(
        "m", question.query, question.passages, tuple(written), Dtype.BFLOAT16, Dtype.BFLOAT16, "this test"
    )


def test_recorded_logits_distinguish_checkpoints(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun], tmp_path: Path
) -> None:
    right, wrong = local_model(folders["llama_bidirec"]), of_another_seed(folders, tmp_path / "other")
    run = reference_of("llama_bidirec")
    recorded = (recorded_from(run.expected[0].question, run.expected[0].logits or ()),)

    yes = served(run._replace(recorded=recorded), right)
    no = served(run_reference(wrong)._replace(recorded=recorded), wrong)

    assert yes.is_faithful, yes
    assert yes.recorded[0].served == pytest.approx(yes.recorded[0].reference, abs=1e-4)
    assert failed(no) == {"recorded in bfloat16, reference", "recorded in bfloat16, served"}
    assert "weights or settings differ" in no.reason


def test_recorded_logits_of_a_causal_run_are_rejected(
    folders: dict[str, Path], reference_of: Callable[[str], ReferenceRun]
) -> None:
    """The weights are unchanged, but the model runs as older remote code does with transformers 5."""
    model, run = local_model(folders["llama_bidirec"]), reference_of("llama_bidirec")
    kind, question = EngineKind.BIDIRECTIONAL_DECODER, run.expected[0].question
    causal_run: Any = load_reference(kind, folders["llama_bidirec"], model, torch.device("cpu"))
    causal_run._model.config.is_causal = True
    logits = [causal_run.logit(causal_run.encode(question.query, passage)) for passage in question.passages]

    verdict = served(run._replace(recorded=(recorded_from(question, logits),)), model)

    assert failed(verdict) == {"recorded in bfloat16, reference", "recorded in bfloat16, served"}


@pytest.mark.parametrize(
    "name",
    [
        "nvidia/llama-3.2-nv-rerankqa-1b-v2",
        "nvidia/llama-nemotron-rerank-1b-v2",
        "llama-nemotron-rerank-1b-v2",
        "Llama-3.2-NV-RerankQA-1B-v2",
    ],
)
def test_recorded_logits_are_found_by_any_name(name: str) -> None:
    assert recorded_of(name) == RECORDED


def test_other_models_have_no_recorded_logits() -> None:
    assert recorded_of(EMBEDDED) == recorded_of("nv-rerankqa-mistral-4b-v3") == ()


@pytest.mark.parametrize("recorded", RECORDED)
def test_recorded_logits_are_numbers_of_their_precision(recorded: RecordedLogits) -> None:
    """Rounding to the stated precision does not change the recorded digits."""
    assert len(recorded.logits) == len(recorded.passages)
    for logit in recorded.logits:
        rounded = float(torch.tensor(logit).to(getattr(torch, recorded.dtype.value)))
        assert rounded == pytest.approx(logit, abs=5e-5)


def test_half_a_rounding_step() -> None:
    for dtype in (Dtype.BFLOAT16, Dtype.FLOAT16):
        for logit in (20.625, -23.125, 1.0, -0.2617, 7.99):
            number = torch.tensor(logit).to(getattr(torch, dtype.value)).abs()
            step = float(torch.nextafter(number, number * 2) - number)
            assert half_step(dtype, float(number)) == step / 2


def test_figures_equal_those_computed_by_hand() -> None:
    reference, near, far = [[3.0, 1.0, 2.0], [-1.0]], [[3.1, 1.0, 0.9], [-1.0]], [[3.1, 1.0, 0.9], [-1.5]]

    figures = figures_of(reference, near, far)

    assert (figures.num_queries, figures.num_pairs, figures.same_best) == (2, 4, 2)
    assert figures.logit_size == pytest.approx((15 / 4) ** 0.5)
    assert figures.largest_difference == pytest.approx(1.1)
    assert figures.mean_difference == pytest.approx(0.3)
    assert figures.largest_change == pytest.approx(0.5)
    assert figures.ordered_alike == pytest.approx(2 / 3)
    assert figures.kendall_tau == pytest.approx(1 / 3)


def test_equal_logits_have_figures() -> None:
    figures = figures_of([[1.0, 1.0]], [[1.0, 2.0]], [[1.0, 2.0]])

    assert (figures.slope, figures.correlation, figures.largest_of_spread) == (None, None, None)
    assert figures.ordered_alike == 1.0


def test_the_embedded_model_is_faithful_as_configured() -> None:
    """The model runs in int8 if the processor supports it."""
    shown = runner.invoke(app, ["verify", "--config", CONFIG], env={"COLUMNS": "200"})

    assert shown.exit_code == 0, shown.output
    assert f"{EMBEDDED}: YES, every check passes" in shown.stdout
    assert "37 of 37 pairs equal, 6 truncated at 256" in shown.stdout


def test_a_negative_verdict_sets_the_exit_code(folders: dict[str, Path], tmp_path: Path) -> None:
    """The folder of a random checkpoint has the name of the real model."""
    folder = shutil.copytree(folders["llama_bidirec"], tmp_path / "llama-nemotron-rerank-1b-v2")
    command = ["verify", str(folder), "--dtype", "float32", "--json"]

    refused = runner.invoke(app, command)
    accepted = runner.invoke(app, [*command, "--recorded", "none"])

    assert refused.exit_code == 1, refused.output
    verdict = json.loads(refused.stdout)
    assert not verdict["is_faithful"]
    assert "weights or settings differ" in verdict["reason"]
    assert [one["recorded"]["logits"][0] for one in verdict["recorded"]] == [20.625, -3.697265625]
    assert accepted.exit_code == 0, accepted.output
    assert json.loads(accepted.stdout)["checks"][0] == {
        "name": "tokens",
        "is_passed": True,
        "found": "37 of 37 pairs equal, 5 truncated at 1,024",
        "allowed": "all",
    }


@pytest.fixture(scope="module")
def service(folders: dict[str, Path]) -> Iterator[str]:
    """A service with four models in float32: a correct one, one with another pooling, and, with a shorter window, a
    correct one and one with changed logits.
    """
    folder = folders["llama_bidirec"]
    right = local_model(folder, id="right")
    wrong = local_model(folder, id="wrong", engine={"pooling": "last"})
    short = local_model(folder, id="short", aliases=["alias"], window_tokens=SHORT_WINDOW)
    nearly = local_model(folder, id="nearly", window_tokens=SHORT_WINDOW, engine={"temperature": 1.03})
    models = (right, wrong, short, nearly)
    with running(local_api(models, {one.id: LocalReplica(one) for one in models})) as url:
        yield url


def test_a_running_service(folders: dict[str, Path], service: str) -> None:
    command = ["verify", str(folders["llama_bidirec"]), "--dtype", "float32", "--url", service, "--json"]

    right = runner.invoke(app, command)
    wrong = runner.invoke(app, [*command, "--served-as", "wrong"])

    assert right.exit_code == 0, right.output
    tokens = json.loads(right.stdout)["tokens"]
    assert (tokens["unit"], tokens["num_compared"], tokens["num_cut"]) == ("requests", 7, 5)
    assert wrong.exit_code == 1
    assert {"largest difference", "mean difference"} <= {
        check["name"] for check in json.loads(wrong.stdout)["checks"] if not check["is_passed"]
    }


@pytest.fixture
def verify_nearly(folders: dict[str, Path], service: str, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Verifies the model `nearly` of the running service. Takes the configured precision and more arguments; returns
    the exit code and the verdict."""

    def run(dtype: str, *more: str) -> tuple[int, dict[str, Any]]:
        config = tmp_path / "serve.yaml"
        model = {
            "checkpoint": {"source": str(folders["llama_bidirec"])},
            "engine": {"dtype": dtype, "device": "cpu"},
            "window_tokens": SHORT_WINDOW,
        }
        models = [model | {"id": name} for name in ("nearly", "short")]
        config.write_text(json.dumps({"applications": [{"args": {"models": models}}]}))
        command = ["verify", "nearly", "--config", str(config), "--url", service, "--json"]
        result = runner.invoke(app, [*command, *more])
        return result.exit_code, json.loads(result.stdout)

    return run


@pytest.mark.parametrize("dtype", ["fastest", "auto", "float32"])
def test_a_running_service_is_verified_in_the_precision_it_reports(
    verify_nearly: Callable[..., tuple[int, dict[str, Any]]], dtype: str
) -> None:
    """A difference of 3% is within the tolerance of int8, but is an error in float32."""
    exit_code, verdict = verify_nearly(dtype)

    assert (exit_code, verdict["dtype"]) == (1, "float32")
    assert "logits are 0.97" in verdict["reason"]


@pytest.mark.parametrize("name", ["short", "ALIAS"])
def test_a_running_service_is_verified_under_another_name(
    verify_nearly: Callable[..., tuple[int, dict[str, Any]]], name: str
) -> None:
    exit_code, verdict = verify_nearly("fastest", "--served-as", name)

    assert (exit_code, verdict["dtype"]) == (0, "float32")


def test_an_option_takes_precedence_over_the_reported_precision(
    verify_nearly: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    exit_code, verdict = verify_nearly("fastest", "--dtype", "int8")

    assert (exit_code, verdict["dtype"]) == (0, "int8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--served-as", "another"], "--served-as needs --url"),
        (["--recorded", "another"], "no logits of 'another' are recorded"),
    ],
)
def test_options_without_effect_are_errors(folders: dict[str, Path], options: list[str], words: str) -> None:
    result = runner.invoke(app, ["verify", str(folders["bert"]), *options])

    assert (result.exit_code, words in result.stderr) == (2, True)


def test_an_unreachable_service_is_reported_immediately(folders: dict[str, Path]) -> None:
    result = runner.invoke(app, ["verify", str(folders["bert"]), "--url", "http://127.0.0.1:9"])

    assert result.exit_code == 2
    assert "cannot reach http://127.0.0.1:9" in result.stderr
