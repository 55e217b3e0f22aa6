"""`rerank-service traffic`: what it shows, what it changes, and what it refuses. Ray's control store is a stand-in."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from rerank_service.config import VersionConfig
from rerank_service.routing import traffic_store
from rerank_service.routing.traffic_store import TrafficStore
from rerank_service.tools.cli.main import app
from rerank_service.tools.deployment import node_drain
from rerank_service.tools.deployment.node_drain import Cluster, Node, Occupants, Replica
from tests.fake_gcs import FakeGcs

MODEL, CANARY, SECOND = "nvidia/llama-nemotron-rerank-1b-v2", "nvidia/llama-nemotron-rerank-1b-v2-fp8", "org/second"
FILE = {
    CANARY: VersionConfig(of=MODEL, traffic_percent=5),
    SECOND: VersionConfig(of=MODEL, shadow_percent=10),
}
runner = CliRunner()

Run = Callable[..., str]


class OneNode(Cluster):
    """A cluster whose only node has the ingress of the application `rerank`."""

    def __init__(self, address: str = "auto") -> None:
        if address == "nowhere":
            raise ConnectionError("no Ray cluster answers at nowhere: refused")
        self.address = "cluster"

    def nodes(self) -> list[Node]:
        return [Node("aa00", "192.0.2.1", is_head=True, is_draining=False, free={})]

    def occupants(self, node_id: str) -> Occupants:
        return Occupants([Replica("rerank", "ingress", {}), Replica("ended", "model", {})], 1)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[TrafficStore]:
    monkeypatch.setattr(node_drain, "Cluster", OneNode)
    monkeypatch.setattr(traffic_store, "GcsClient", FakeGcs)
    monkeypatch.setenv("COLUMNS", "80")
    FakeGcs.clusters.clear()
    store = TrafficStore("cluster")
    store.register("rerank", FILE)
    store.register("ended", {"old": VersionConfig(of="gone", traffic_percent=50)})
    yield store
    FakeGcs.clusters.clear()


def run(*arguments: str, exit_code: int = 0) -> str:
    result = runner.invoke(app, ["traffic", *arguments])
    assert result.exit_code == exit_code, result.output
    return " ".join((result.output if exit_code else result.stdout).split())


def current(store: TrafficStore) -> dict[str, VersionConfig]:
    stored = store.read("rerank")
    assert stored is not None
    assert stored.configured == FILE
    return stored.current


def test_a_canary_gets_a_share(store: TrafficStore) -> None:
    printed = run(CANARY, "--percent", "20")

    assert f"{CANARY} answers 20% of the requests for {MODEL} (before: answers 5%)" in printed
    assert "within two seconds" in printed
    assert current(store) == FILE | {CANARY: VersionConfig(of=MODEL, traffic_percent=20)}


def test_a_shadow_becomes_a_canary_and_the_other_way_round(store: TrafficStore) -> None:
    run(SECOND, "--percent", "2.5")
    assert current(store)[SECOND] == VersionConfig(of=MODEL, traffic_percent=2.5)

    run(CANARY, "--shadow-percent", "50")
    assert current(store)[CANARY] == VersionConfig(of=MODEL, shadow_percent=50)


@pytest.mark.parametrize("names", [(), (MODEL,), (CANARY,)], ids=["all", "of a model", "one version"])
def test_a_rollback_is_one_command(store: TrafficStore, names: tuple[str, ...]) -> None:
    assert f"{CANARY} answers 0% of the requests for {MODEL} (before: answers 5%)" in run("--rollback", *names)
    assert current(store) == FILE | {CANARY: VersionConfig(of=MODEL)}  # shadows answer nothing and stay

    assert "nothing has changed" in run("--rollback", *names)


def test_the_table_fits_a_terminal(store: TrafficStore) -> None:
    run(CANARY, "--percent", "20")
    shown = runner.invoke(app, ["traffic"]).stdout

    assert all(cell_len(line) <= 80 for line in shown.splitlines())
    assert "answers 20%" in shown
    assert "answers 5%" in shown
    assert "shadows 10%" in shown
    assert "gone" not in shown


def test_the_shares_as_json(store: TrafficStore) -> None:
    answer: dict[str, Any] = json.loads(run(CANARY, "--percent", "20", "--json"))

    assert answer["versions"][0] == {
        "application": "rerank",
        "version": CANARY,
        "of": MODEL,
        "traffic_percent": 20,
        "shadow_percent": 0,
        "configured": {"of": MODEL, "traffic_percent": 5, "shadow_percent": 0},
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["unknown", "--percent", "5"],
            f"has a version 'unknown'; there are {CANARY}, {SECOND}",
        ),
        (["unknown", "--rollback"], "no running application has versions of 'unknown'"),
        (["--percent", "5"], "which version? `rerank-service traffic` lists them"),
        ([CANARY], f"what should {CANARY} receive?"),
        ([CANARY, "--percent", "5", "--shadow-percent", "5"], "give only one of --percent, --shadow-percent"),
        ([CANARY, "--percent", "5", "--rollback"], "give only one of --percent, --shadow-percent and --rollback"),
        (["--address", "nowhere"], "no Ray cluster answers at nowhere"),
    ],
)
def test_unclear_commands_change_nothing(store: TrafficStore, arguments: list[str], problem: str) -> None:
    assert problem in run(*arguments, exit_code=2)
    assert current(store) == FILE


def test_versions_cannot_answer_more_than_all_requests(store: TrafficStore) -> None:
    run(SECOND, "--percent", "60")

    assert f"the versions of {MODEL} would answer 101% of its requests" in run(CANARY, "--percent", "41", exit_code=2)


def test_a_cluster_without_versions_says_so(store: TrafficStore) -> None:
    FakeGcs.clusters.clear()

    assert "no running application has versions" in run()
    assert "nothing has changed" in run("--rollback")
