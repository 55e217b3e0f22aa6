"""Subcommands that need no running service; `tests/service` runs the others."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rerank_service import __version__
from rerank_service.tools.cli.console import with_scheme
from rerank_service.tools.cli.main import app
from rerank_service.tools.files import file_problem
from tests.http_servers import error, ranking, scripted

CONFIG = str(Path(__file__).parents[4] / "serve_config.yaml")
runner = CliRunner()


@pytest.fixture
def passages(tmp_path: Path) -> str:
    path = tmp_path / "passages.txt"
    path.write_text("A croissant is a pastry.\n\nParis is the capital of France.\nBerlin is in Germany.\n")
    return str(path)


@pytest.fixture(scope="module")
def float32_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped configuration in float32, because calibrating int8 takes seconds."""
    path = tmp_path_factory.mktemp("config") / "float32.yaml"
    path.write_text(Path(CONFIG).read_text().replace("dtype: fastest", "dtype: float32"))
    return str(path)


def test_version_and_help() -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip() == __version__
    assert "make-checkpoint" in runner.invoke(app, ["--help"]).stdout


def test_check() -> None:
    good = runner.invoke(app, ["check", CONFIG])
    assert (good.exit_code, "is valid" in good.stdout) == (0, True)

    bad = runner.invoke(app, ["check", "nowhere.yaml"])
    assert bad.exit_code == 2
    assert bad.stderr.splitlines()[-1] == "cannot read nowhere.yaml: No such file or directory"


def test_without_a_file_the_packaged_configuration_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged, named = runner.invoke(app, ["check"]), runner.invoke(app, ["check", "serve_config.yaml"])

    assert packaged.exit_code == 0
    assert packaged.stderr.startswith("no serve_config.yaml here: using /")
    assert "it serves sentence-transformers/all-MiniLM-L6-v2" in packaged.stdout
    assert named.exit_code == 2
    assert "cannot read serve_config.yaml" in named.stderr

    (tmp_path / "serve_config.yaml").write_text(Path(CONFIG).read_text())
    assert runner.invoke(app, ["check"]).stderr == ""


def test_check_as_json() -> None:
    good = runner.invoke(app, ["check", CONFIG, "--json"])
    assert json.loads(good.stdout)["models"] == ["sentence-transformers/all-MiniLM-L6-v2"]

    bad = runner.invoke(app, ["check", "nowhere.yaml", "--json"])
    assert bad.exit_code == 2
    assert not json.loads(bad.stdout)["valid"]
    assert "cannot read nowhere.yaml" in json.loads(bad.stdout)["problems"][0]


def test_check_knows_cascades(tmp_path: Path) -> None:
    document = yaml.safe_load(Path(CONFIG).read_text())
    args = document["applications"][0]["args"]
    first = args["models"][0]
    args["models"] = [first | {"id": "small", "aliases": []}, first | {"id": "large", "aliases": []}]
    stages = [{"model": "small", "keep": 2000}, {"model": "large"}]
    args["cascades"] = [{"id": "both", "stages": stages}]
    path = serve_file(tmp_path, applications=[document["applications"][0]])

    good = runner.invoke(app, ["check", path])
    stages[0]["keep"] = 100
    quiet = runner.invoke(app, ["check", serve_file(tmp_path, applications=[document["applications"][0]])])
    stages[1]["model"] = "other"
    bad = runner.invoke(app, ["check", serve_file(tmp_path, applications=[document["applications"][0]])])

    assert "it serves small, large, both" in good.stdout
    assert "stage small keeps 2000 passages, and a request has at most 1000" in good.stdout
    assert "stage small" not in quiet.stdout
    assert bad.exit_code == 2
    assert "cascade 'both': a stage needs the id of a model that is not a version" in bad.stderr


def test_check_warns_about_more_replicas_than_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    result = runner.invoke(app, ["check", CONFIG])
    assert result.exit_code == 0
    assert "the replicas need 2 CPUs and this machine has 1" in result.stdout


def serve_file(folder: Path, **changes: Any) -> str:
    """The shipped configuration with other settings of Serve."""
    path = folder / "serve.yaml"
    document = yaml.safe_load(Path(CONFIG).read_text())
    path.write_text(yaml.safe_dump(document | changes))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"http_options": {"port": 99999}}, ["http_options.port: must be from 1 to 65,535, not 99999"]),
        ({"http_options": {"host": 5}}, ["http_options.host: must be a valid string, not 5"]),
        ({"http_options": ["host"]}, ["http_options: must be a mapping of settings"]),
        (
            {"http_options": {"prot": 1, "request_timeout_s": float("inf")}},
            [
                "http_options.prot: unknown setting; did you mean `port`?",
                "http_options.request_timeout_s: must be a finite number of seconds, or null for no limit, not inf",
            ],
        ),
        ({"http_optionss": {}, "x-a": {}}, ["http_optionss: unknown setting; did you mean `http_options`?"]),
        ({"proxy_loaction": "EveryNode"}, ["proxy_loaction: unknown setting; did you mean `proxy_location`?"]),
        (
            {"logging_config": {"log_levle": "INFO"}, "grpc_options": {"prot": 1}},
            [
                "grpc_options.prot: unknown setting; did you mean `port`?",
                "logging_config.log_levle: unknown setting; did you mean `log_level`?",
            ],
        ),
    ],
)
def test_check_and_serve_refuse_invalid_settings_of_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], problems: list[str]
) -> None:
    path = serve_file(tmp_path, **changes)
    monkeypatch.setattr("os.environ", dict(os.environ))  # `serve` sets Ray's variables

    told = json.loads(runner.invoke(app, ["check", path, "--json"]).stdout)
    for command in ("check", "serve"):
        result = runner.invoke(app, [command, path])
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [f"error: {path} cannot be served", *problems]

    assert told == {"valid": False, "problems": problems}


MINILM = "sentence-transformers_all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"route_prefx": "/"}, "route_prefx: unknown setting; did you mean `route_prefix`?"),
        ({"runtime_env": {"env_var": {}}}, "runtime_env.env_var: unknown setting; did you mean `env_vars`?"),
        (
            {"autoscaling_policy": {"policy_functon": "a:b"}},
            "autoscaling_policy.policy_functon: unknown setting; did you mean `policy_function`?",
        ),
        (
            {"deployments": [{"name": "ingres"}]},
            "deployments[0].name: the application has no deployment 'ingres'; did you mean `ingress`?",
        ),
        (
            {"deployments": [{"name": "x"}]},
            f"deployments[0].name: the application has no deployment 'x'; it has ingress, {MINILM}",
        ),
        (
            {"deployments": [{"name": "ingress", "ray_actor_options": {"num_cpu": 1}}]},
            "deployments[0].ray_actor_options.num_cpu: unknown setting; did you mean `num_cpus`?",
        ),
        (
            {"deployments": [{"name": "ingress", "autoscaling_config": {"min_replica": 1}}]},
            "deployments[0].autoscaling_config.min_replica: unknown setting; did you mean `min_replicas`?",
        ),
        (
            {"deployments": [{"name": MINILM, "user_config": {"max_batch_token": 1}}]},
            "deployments[0].user_config.max_batch_token: unknown setting; did you mean `max_batch_tokens`?",
        ),
        ({"import_path": "not_there:build"}, "import_path: the package 'not_there' is not installed"),
        (
            {"import_path": "rerank_servce.app:build_app"},
            "import_path: the package 'rerank_servce' is not installed; did you mean `rerank_service.app:build_app`?",
        ),
        (
            {"import_path": "rerank_service.app:build_ap"},
            "import_path: rerank_service.app:build_ap does not exist; did you mean `rerank_service.app:build_app`?",
        ),
    ],
)
def test_check_refuses_misspelt_names_in_an_application(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    (application,) = yaml.safe_load(Path(CONFIG).read_text())["applications"]
    path = serve_file(tmp_path, applications=[application | changes])

    result = runner.invoke(app, ["check", path])

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {path} cannot be served", f"applications[0].{problem}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"import_path": "not_there:build", "runtime_env": {"working_dir": "s3://bucket/code.zip"}},
        {"deployments": [{"name": "ingress", "num_replicas": 2}, {"name": MINILM, "user_config": {}}]},
        {"runtime_env": {"env_vars": {"A": "b"}}, "x-anchors": {"a": 1}},
    ],
)
def test_check_accepts_what_serve_accepts(tmp_path: Path, changes: dict[str, Any]) -> None:
    (application,) = yaml.safe_load(Path(CONFIG).read_text())["applications"]

    result = runner.invoke(app, ["check", serve_file(tmp_path, applications=[application | changes])])

    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("application: []", "; `application` must be spelt `applications`"),
        ("applications: [{name: a, arg: {}}]", "; `arg` must be spelt `args`"),
        ("a: 1", ""),
    ],
)
def test_check_names_the_key_that_was_meant(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    problem = f"{path} is not a Serve configuration: it has no application with args{hint}"
    assert runner.invoke(app, ["check", str(path)]).stderr.splitlines()[-1] == problem


def test_check_notes_files_that_other_nodes_may_have(tmp_path: Path) -> None:
    document = yaml.safe_load(Path(CONFIG).read_text())
    (application,) = document["applications"]
    application["import_path"] = "json:build"
    application["args"]["models"][0]["checkpoint"] = {"source": "/no/where"}
    application["args"]["auth"] = {"key_hashes_file": "/no/hashes"}

    result = runner.invoke(app, ["check", serve_file(tmp_path, **document), "--json"])

    assert result.exit_code == 0
    foreign, hashes, folder = json.loads(result.stdout)["notes"][-3:]
    assert "application 'rerank' has the import path json:build, which is not part of this service" in foreign
    assert "auth.key_hashes_file /no/hashes is not a file on this machine" in hashes
    assert "checkpoint.source /no/where of sentence-transformers/all-MiniLM-L6-v2 is not a folder on this" in folder


def test_serve_refuses_a_bad_configuration_before_starting_anything(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("applications: [{args: {models: [{id: a, checkpoint: {source: x/y}}]}}]")

    result = runner.invoke(app, ["serve", str(path)])

    assert result.exit_code == 2
    assert "models[0].checkpoint: hub checkpoint 'x/y' needs revision" in result.stderr
    assert "Traceback" not in result.output


def test_rank_in_process(passages: str, float32_config: str) -> None:
    command = ["rank", "What is the capital of France?", passages, "--in-process", "--top", "2"]

    shown = runner.invoke(app, [*command, "--config", CONFIG])
    answer = json.loads(runner.invoke(app, [*command, "--config", float32_config, "--json"]).stdout)

    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[1].endswith("Paris is the capital of France.")
    assert [ranking["index"] for ranking in answer["rankings"]] == [1, 2]
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "f.yaml"], "--config needs --in-process: a running service has its own configuration"),
        (["--in-process", "--url", "http://127.0.0.1:9"], "--url applies to a running service; leave it out"),
        (["--in-process", "--key", "k"], "--key applies to a running service; leave it out"),
        (["--in-process", "--min-probability", "0.5"], "--min-probability applies to a running service; leave it out"),
    ],
)
def test_rank_refuses_options_without_effect(passages: str, options: list[str], message: str) -> None:
    result = runner.invoke(app, ["rank", "q", passages, *options])

    assert result.exit_code == 2
    assert message in result.stderr


def test_rank_in_process_ignores_the_environments_service(passages: str, float32_config: str) -> None:
    environment = {"RERANK_SERVICE_URL": "http://127.0.0.1:9", "RERANK_SERVICE_API_KEY": "k"}
    result = runner.invoke(app, ["rank", "q", passages, "--in-process", "--config", float32_config], env=environment)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("rerank:80", "http://rerank:80"),
        ("10.0.0.1", "http://10.0.0.1"),
        ("[::1]:8000/base", "http://[::1]:8000/base"),
        ("https://a.example", "https://a.example"),
        ("not a url", "not a url"),
        ("ftp://a.example", "ftp://a.example"),
        (None, None),
    ],
)
def test_an_address_without_a_scheme_is_an_http_url(given: str | None, url: str | None) -> None:
    assert with_scheme(given) == url


def test_rank_accepts_an_address_without_a_scheme() -> None:
    with scripted() as server:
        for options in (["--url", server.url.removeprefix("http://")], []):
            result = runner.invoke(app, ["rank", "q", *options], input="a\nb\n", env={"RERANK_SERVICE_URL": server.url})
            assert result.exit_code == 0, result.output


def test_rank_accepts_more_lines_than_fit_in_one_request() -> None:
    lines = "\n".join("x" * (1 + number % 7) for number in range(600))
    with scripted() as server:
        result = runner.invoke(app, ["rank", "q", "--url", server.url, "--json", "--top", "3"], input=lines)

    assert sorted(len(request.body["passages"]) for request in server.seen) == [88, 512]
    answer = json.loads(result.stdout)
    assert answer["rankings"] == [{"index": index, "logit": 7.0} for index in (6, 13, 20)]
    assert answer["usage"] == {"prompt_tokens": 6000, "total_tokens": 6000}


def test_rank_reports_truncated_and_unscored_passages(float32_config: str) -> None:
    headers = {"x-rerank-truncated-passages": "2", "x-rerank-unscored-passages": "1"}
    with scripted(ranking([1.0, 2.0, 3.0], **headers)) as server:
        there = runner.invoke(app, ["rank", "q", "--url", server.url, "--json"], input="a\nb\nc")
    command = ["rank", "q", "--in-process", "--config", float32_config, "--json"]
    here = runner.invoke(app, command, input="short\n" + "long " * 400)
    whole = runner.invoke(app, command, input="short")

    assert there.stderr == (
        "2 of 3 passages were truncated to the model's window; use --max-windows to score their whole text\n"
        "The query leaves no room for 1 of the passages (not scored): shorten the query\n"
    )
    assert here.stderr.startswith("1 of 2 passages were truncated")
    assert len(json.loads(here.stdout)["rankings"]) == 2
    assert whole.stderr == ""


def test_rank_says_that_no_passage_is_probable_enough() -> None:
    with scripted(ranking([])) as server:
        result = runner.invoke(app, ["rank", "q", "--url", server.url, "--min-probability", "0.9"], input="a\nb")

    assert result.exit_code == 0, result.output
    assert result.stdout == "No passage reaches the probability 0.9.\n"


def test_rank_writes_whole_passages_to_a_file() -> None:
    long, red = "a " * 300, "\x1b[31mred"
    with scripted() as server:
        result = runner.invoke(app, ["rank", "q", "--url", server.url], input=f"{long}\n{red}\n", env={"COLUMNS": "80"})

    assert result.stdout == f" logit  index  passage\n600.00      0  {long}\n  8.00      1   [31mred\n"


def test_the_key_comes_from_the_option_or_the_environment() -> None:
    command = ["rank", "q", "--json"]
    with scripted() as server:
        environment = {"RERANK_SERVICE_URL": server.url, "NVIDIA_API_KEY": "other", "RERANK_SERVICE_API_KEY": None}
        runner.invoke(app, command, input="a", env=environment)
        runner.invoke(app, command, input="a", env=environment | {"RERANK_SERVICE_API_KEY": "ours"})
        runner.invoke(
            app, [*command, "--key", "given"], input="a", env=environment | {"RERANK_SERVICE_API_KEY": "ours"}
        )

    assert [one.headers["authorization"] for one in server.seen] == ["Bearer other", "Bearer ours", "Bearer given"]


@pytest.mark.parametrize("place", [[], ["--in-process"]])
def test_rank_refuses_a_blank_query(place: list[str]) -> None:
    result = runner.invoke(app, ["rank", " ", *place], input="a passage")

    assert result.exit_code == 2
    assert "the query is blank" in result.stderr


def test_rank_reports_passages_that_are_not_utf8(tmp_path: Path) -> None:
    raw = b"a passage\n\xff\xfe\n"
    path = tmp_path / "passages.txt"
    path.write_bytes(raw)

    piped, named = runner.invoke(app, ["rank", "q", "-"], input=raw), runner.invoke(app, ["rank", "q", str(path)])

    assert (piped.exit_code, named.exit_code) == (2, 2)
    problem = "line 2: not UTF-8 (invalid start byte)"
    assert piped.stderr == f"error: standard input, {problem}\n"
    assert named.stderr == f"error: {path}, {problem}\n"


def test_rank_prints_the_services_error() -> None:
    with scripted(error(403, "not with this key")) as server:
        result = runner.invoke(app, ["rank", "q", "--url", server.url], input="a passage")

    assert result.exit_code == 2
    assert "error: 403: not with this key" in result.stderr


def test_rank_reads_standard_input(float32_config: str) -> None:
    command = ["rank", "capital of France", "--in-process", "--config", float32_config, "--json"]

    answer = json.loads(runner.invoke(app, command, input="a pastry\nParis\n").stdout)

    assert answer["rankings"][0]["index"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "q", "nowhere.txt"], "error: nowhere.txt does not exist"),
        (["rank", "q", "/dev/null"], "there are no passages"),
        (["rank", "q", "{passages}", "--url", "http://127.0.0.1:9"], "is it running?"),
        (["rank", "q", "{passages}", "--url", "not a url"], "must be an http or https URL"),
        (["models", "--url", "http://127.0.0.1:9"], "is it running?"),
        (["models", "--url", "not a url"], "cannot reach not a url"),
        (["rank", "q", "{passages}", "--in-process", "--config", CONFIG, "--model", "nope"], "no model 'nope'"),
    ],
)
def test_errors_are_reported_in_one_line(passages: str, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, [argument.replace("{passages}", passages) for argument in arguments])

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "q", "{folder}"], "{folder} is a folder, not a file"),
        (["rank", "q", "{folder}/no.txt"], "{folder}/no.txt does not exist"),
        (["rank", "q", "{passages}/x"], "{passages}/x is not a folder, or lies in a path that is not a folder"),
        (["batch", "{folder}/no.jsonl", "{folder}/out.jsonl"], "{folder}/no.jsonl does not exist"),
        (["batch", "{pairs}", "{passages}/out.jsonl"], "{passages}/out.jsonl.parts cannot be written: not a directory"),
        (["make-checkpoint", "bert", "{passages}/x"], "{passages}/x cannot be written: file exists"),
        (
            ["eval", "{folder}", "--plot", "{folder}/no/x.png"],
            "{folder}/no/x.png cannot be written: {folder}/no is not a",
        ),
        (["rank", "q", "{passages}", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 (Connection refused); is it"),
        (["models", "--url", "http://no.invalid"], "cannot reach http://no.invalid ("),
    ],
)
def test_the_system_s_errors_are_put_in_plain_words(
    tmp_path: Path, passages: str, arguments: list[str], message: str
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "q", "passage": "p"}\n')
    names = {"folder": str(tmp_path), "passages": passages, "pairs": str(pairs)}

    result = runner.invoke(app, [argument.format_map(names) for argument in arguments])

    assert result.exit_code == 2, result.output
    assert message.format_map(names) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Errno" not in result.output


def test_an_unreadable_file_and_a_full_disk_are_put_in_plain_words() -> None:
    denied = PermissionError(13, "Permission denied", "/secret")
    assert file_problem(denied) == "/secret cannot be read: permission denied"
    assert file_problem(denied, "mine", is_output=True) == "mine cannot be written: permission denied"
    assert (
        file_problem(OSError(28, "No space left on device")) == "the operating system reports: no space left on device"
    )


PLAN = ["plan", "--rps", "20", "--passages", "20", "--tokens", "short", "--p99-ms", "500"]


def test_plan_reports_whether_the_speed_is_assumed() -> None:
    shown = runner.invoke(app, [*PLAN, "--tokens-per-s", "20000"])
    assumed = runner.invoke(app, [*PLAN, "--gpu", "l4"])

    assert (shown.exit_code, assumed.exit_code) == (0, 0)
    assert "an assumption, not a measurement" not in shown.stdout
    assert "an assumption, not a measurement" in assumed.stdout


def test_plan_says_why_it_recommends_its_number_of_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    small = runner.invoke(app, [*PLAN, "--rps", "1", "--tokens-per-s", "200000"]).stdout
    large = runner.invoke(app, [*PLAN, "--rps", "100", "--tokens-per-s", "20000"]).stdout

    assert "a single replica meets the target" in small
    assert "one replica fewer" not in small
    assert "at this load, the autoscaler keeps 1\n" in re.sub(" +\n", "\n", small)
    assert "one replica fewer" in large
    assert "each 80% busy (target_utilisation)" in large


def test_plan_without_a_terminal_says_that_it_simulates() -> None:
    assert runner.invoke(app, PLAN).stderr.splitlines()[0] == "simulating the load ..."


def test_plan_as_json_is_minimal_and_repeatable() -> None:
    command = [*PLAN, "--tokens-per-s", "20000", "--price-per-gpu-hour", "2", "--json"]

    first, second = (json.loads(runner.invoke(app, command).stdout) for _ in range(2))

    assert first == second
    assert first["plan"]["measured"]["p99_s"] <= 0.5
    assert first["plan"]["fewest_replicas"] <= first["plan"]["replicas"] <= first["kept_replicas"]
    assert first["cost_per_million_passages"] == pytest.approx(first["plan"]["replicas"] * 2 / (20 * 20 * 3600) * 1e6)
    assert first["region"] is None


def test_plan_with_regions_simulates_the_loss_of_a_region() -> None:
    command = [*PLAN, "--tokens-per-s", "20000", "--regions", "2", "--start-s", "5", "--timeout-s", "5", "--json"]

    region = json.loads(runner.invoke(app, command).stdout)["region"]

    assert region["plan"]["replicas"] < region["plan_after_loss"]["replicas"]
    assert region["loss"]["recovered_after_s"] is not None


@pytest.mark.parametrize(
    "options",
    [
        *(["--rps", value] for value in ("inf", "nan", "1e12")),
        *(["--passages", value] for value in ("10:nan", "10:inf", "10:1,20:1e400")),
        *(["--tokens", value] for value in ("1000001", "9" * 400)),
        *([option, "inf"] for option in ("--p99-ms", "--tokens-per-s", "--batch-overhead-ms", "--burstiness")),
        *([option, "inf"] for option in ("--timeout-s", "--price-per-gpu-hour", "--start-s", "--failover-s")),
        ["--regions", "1000000"],
        ["--passages", "8", "--cascade", "1b=inf:2,4b"],
    ],
)
def test_plan_refuses_numbers_that_cannot_be_simulated(options: list[str]) -> None:
    refused = runner.invoke(app, [*PLAN, *options])

    assert refused.exit_code == 2
    assert options[-2] in refused.stderr


@pytest.mark.parametrize("options", [[], ["--regions", "2"], ["--passages", "100", "--cascade", "1b:50,4b"]])
def test_plan_refuses_a_load_whose_simulation_would_take_hours(options: list[str]) -> None:
    load = ["plan", "--passages", "100", "--tokens", "256", "--p99-ms", "500"]

    refused = runner.invoke(app, [*load, "--rps", "50000", *options])

    words = " ".join(refused.stderr.split())
    assert refused.exit_code == 2
    part = re.search(r"simulating at least [\d,]+ replicas would take hours\. .* such as --rps ([\d.]+),", words)
    assert part is not None
    assert 100 < float(part[1]) < 5_000


CASCADE = [*PLAN, "--passages", "8", "--cascade"]


def test_plan_of_a_cascade_compares_it_with_the_last_model_alone() -> None:
    command = [*CASCADE, "small=90000:2,large=9000", "--price-per-gpu-hour", "2"]

    shown, asked = runner.invoke(app, command), runner.invoke(app, [*command, "--json"])
    estimated = runner.invoke(app, [*CASCADE, "1b:0.5,4b", "--rps", "1", "--json"])

    plan = json.loads(asked.stdout)
    small, large = (stage["replicas"] for stage in plan["stages"])
    assert plan["replicas"] == small + large
    text = " ".join(shown.stdout.split())
    assert f"You need {small + large} replicas, {small} for the small and {large} for the large: 99% of" in text
    assert f"Without the cascade, the large alone needs {plan['alone']['replicas']}." in text
    assert re.search("replicas? of the large for 2 passages per request", text)
    assert "are assumptions" not in text
    assert [stage["mean_passages"] for stage in json.loads(estimated.stdout)["stages"]] == [8, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["1b"], "has not the form MODEL:KEEP,...,MODEL"),
        (["1b:50;4b"], "has not the form MODEL:KEEP,...,MODEL"),
        (["1b,4b"], "how many passages does 1b keep? Write 1b:50 or 1b:0.1"),
        (["1b:0,4b"], "1b must keep a whole number of passages, or a share"),
        (["1b:2.5,4b"], "1b must keep a whole number of passages, or a share"),
        (["1b:1.0,4b"], "1b must keep a whole number of passages, or a share"),
        (["1b:50,1b"], "1b is in two stages"),
        (["1b:50,4b:5"], "the last stage, 4b, keeps nothing"),
        (["small:50,4b"], "the speed of small is not known; known are 1b and 4b"),
        (["embedded:50,1b"], "the speed of embedded is not known"),
        (["small=0:50,4b"], "must be above 0"),
        (["1b:50,4b", "--gpu", "abacus"], "no datasheet figure for GPU 'abacus'"),
        (["1b:50,4b", "--model", "4b", "--regions", "2"], "cannot be combined with --model or --regions"),
        (["1b:50,4b", "--tokens-per-s", "9000"], "cannot be combined with --tokens-per-s"),
        (["1b:5,4b", "--p99-ms", "4"], "Use a faster replica (MODEL=TOKENS_PER_S in --cascade, --gpu)"),
    ],
)
def test_plan_reports_an_invalid_cascade(options: list[str], message: str) -> None:
    result = runner.invoke(app, [*CASCADE, *options])

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--p99-ms", "5"], "no number of replicas keeps p99 within 5 ms"),
        (["--gpu", "abacus"], "no datasheet figure for GPU 'abacus'"),
        (["--passages", "many"], "is neither a number nor a mix"),
        (["--passages", "0"], "must be above 0"),
        (["--passages", "20:9,600:1"], "a request has at most 512 passages (limits.max_passages)"),
        (["--tokens", "few"], "a number or one of short, chunks, long-tail"),
    ],
)
def test_plan_reports_invalid_options(changed: list[str], message: str) -> None:
    result = runner.invoke(app, [*PLAN, *changed])

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
