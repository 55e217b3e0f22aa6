"""`rerank-service drain`: choice of the node, output, refusals, and every `drain` command in the repository."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerank_service.tools.cli.main import app
from rerank_service.tools.deployment import node_drain
from rerank_service.tools.deployment.node_drain import Cluster, Node, Occupants, Replica, obstacles, without_a_place
from tests.manifests import built, kustomize

ROOT = Path(__file__).parents[4]
MODEL = Replica("llama-1b", "llama", {"CPU": 4.0, "GPU": 1.0})
INGRESS = Replica("rerank", "ingress", {})
HEAD = Node("aa00", "192.0.2.1", is_head=True, is_draining=False, free={})
HERE = Node("bb11", "127.0.0.1", is_head=False, is_draining=False, free={"CPU": 2.0})
OTHER = Node("bb22", "192.0.2.3", is_head=False, is_draining=False, free={"CPU": 6.0, "GPU": 1.0})
runner = CliRunner()


class FakeCluster(Cluster):
    """A cluster of three nodes without Ray, in which a drained node is empty at once."""

    def __init__(self, address: str = "auto") -> None:
        self.address = address
        type(self).last = self
        self.drained: list[tuple[str, float]] = []

    last: "FakeCluster | None" = None
    known: Sequence[Node] = (HEAD, HERE, OTHER)
    stays = False

    def nodes(self) -> list[Node]:
        return list(self.known)

    def occupants(self, node_id: str) -> Occupants:
        if self.drained and not self.stays:
            return Occupants([], int(node_id == HEAD.id))  # Serve keeps the proxy on the head
        return Occupants([MODEL, INGRESS], 1)

    def drain(self, node: Node, deadline_s: float) -> None:
        self.drained.append((node.id, deadline_s))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeCluster]:
    class Fresh(FakeCluster):
        pass

    monkeypatch.setattr(node_drain, "Cluster", Fresh)
    return Fresh


def run(*arguments: str) -> Any:
    return runner.invoke(app, ["drain", *arguments])


def drained(fake: type[FakeCluster]) -> list[str]:
    return [] if fake.last is None else [node_id for node_id, _ in fake.last.drained]


@pytest.mark.parametrize("arguments", [[], ["--force"], ["bb22", "--this-node"], ["--node-ip", "192.0.2.3", "bb22"]])
def test_exactly_one_node_must_be_named_before_the_cluster_is_contacted(
    fake: type[FakeCluster], arguments: list[str]
) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert "which node?" in result.stderr
    assert all(way in result.stderr for way in ("NODE_ID", "--node-ip", "--this-node"))
    assert fake.last is None


@pytest.mark.parametrize(
    ("arguments", "node_id"),
    [(["bb11"], "bb11"), (["bb1"], "bb11"), (["--node-ip", "127.0.0.1"], "bb11"), (["--this-node"], "bb11")],
)
def test_three_ways_to_name_a_node(fake: type[FakeCluster], arguments: list[str], node_id: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 0, result.output
    assert drained(fake) == [node_id]
    assert "1 of llama (application llama-1b), 1 of ingress (application rerank), 1 of Serve's HTTP" in result.stdout
    assert "no part of the service is left" in result.stdout


@pytest.mark.parametrize("arguments", [["bb"], ["cc"], ["--node-ip", "192.0.2.9"]])
def test_an_unknown_or_ambiguous_node(fake: type[FakeCluster], arguments: list[str]) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert "bb22 at 192.0.2.3" in result.stderr
    assert drained(fake) == []


@pytest.mark.parametrize(
    ("node", "known", "reason"),
    [
        ("aa00", [HEAD, HERE, OTHER], "it is the head"),
        ("bb22", [HEAD, HERE, OTHER], "no other node has room for 1 of the replicas of llama"),
        ("bb11", [HERE], "no other node has room for 1 of the replicas of ingress"),
        ("bb11", [HEAD, HERE, OTHER._replace(is_draining=True)], "4 CPU, 1 GPU"),
    ],
)
def test_a_node_with_replicas_that_fit_nowhere_is_refused_unless_forced(
    fake: type[FakeCluster], node: str, known: list[Node], reason: str
) -> None:
    fake.known = known

    refused = run(node)
    assert refused.exit_code == 2
    assert reason in refused.stderr.replace("\n", " ")
    assert "--force" in refused.stderr
    assert drained(fake) == []

    as_json = json.loads(run(node, "--json").stdout)
    assert not as_json["drained"]
    assert reason in " ".join(as_json["against"])
    assert drained(fake) == []

    forced = run(node, "--force")
    assert forced.exit_code == 0, forced.output
    assert reason in forced.stdout
    assert drained(fake) == [node]


def test_replicas_left_at_the_deadline_are_reported(fake: type[FakeCluster]) -> None:
    fake.stays = True

    result = run("bb11", "--deadline-s", "1")
    as_json = run("bb11", "--deadline-s", "1", "--json")

    assert (result.exit_code, as_json.exit_code) == (1, 1)
    assert "after 1 s, the node still has 1 of llama" in result.stdout
    assert json.loads(as_json.stdout) == {
        "node_id": "bb11",
        "node_ip": "127.0.0.1",
        "moves": [
            {"application": "llama-1b", "deployment": "llama", "replicas": 1},
            {"application": "rerank", "deployment": "ingress", "replicas": 1},
        ],
        "proxies": 1,
        "against": [],
        "drained": False,
        "replicas_left": 1 + 1,
        "proxies_left": 1,
    }


def test_replicas_that_are_placed_share_the_free_resources() -> None:
    two, small = [MODEL, MODEL], Replica("a", "b", {"CPU": 2.0})

    assert without_a_place(two, [OTHER]) == [MODEL]
    assert without_a_place(two, [OTHER, OTHER._replace(id="bb33")]) == []
    assert without_a_place([small, MODEL], [OTHER]) == []
    assert without_a_place([small, small, MODEL], [OTHER]) == [small]
    assert without_a_place([INGRESS], [HEAD]) == []
    assert obstacles(OTHER, [OTHER, HERE], Occupants([], 1)) == []


def test_a_missing_cluster_is_reported_in_one_line() -> None:
    result = run("bb11", "--address", "127.0.0.1:1")

    assert result.exit_code == 2
    assert "no Ray cluster answers at" in result.stderr


def words_of(command: Sequence[str], folder: Path, **variables: str) -> list[list[str]]:
    """Arguments of each `rerank-service drain` call made by `command`, recorded by a stand-in program on PATH."""
    stand_in, written = folder / "rerank-service", folder / "words"
    stand_in.write_text(f'#!/bin/sh\n[ "$1" = drain ] && printf "%s\\n" "$@" "" >>"{written}"\nexit 0\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "RERANK_BIN": str(folder)} | variables
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    runs = written.read_text().split("\n\n")
    written.unlink()
    return [one.strip("\n").splitlines() for one in runs if one.strip()]


@pytest.mark.skipif(kustomize() is None, reason="needs kubectl or kustomize")
@pytest.mark.parametrize("folder", ["base", "overlays/dev-cpu", "overlays/one-gpu", "overlays/many-nodes"])
def test_kubernetes_prestop_hooks_drain_their_node(fake: type[FakeCluster], folder: str, tmp_path: Path) -> None:
    (service,) = [one for one in built(ROOT / "cluster/kuberay" / folder) if one["kind"] == "RayService"]
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert groups
    for group in groups:
        hook = group["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        fake.known = [HEAD, HERE]  # even the last worker of a group is drained
        for words in words_of(hook, tmp_path):
            assert runner.invoke(app, words).exit_code == 0
            assert drained(fake) == [HERE.id]


@pytest.mark.parametrize("more", [[], ["--force"]])
def test_the_bare_metal_script_drains_its_node(fake: type[FakeCluster], tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "auth_token").write_text("x")
    node = str(ROOT / "cluster/bare-metal/node.sh")
    (words,) = words_of(
        ["bash", node, "drain", "head:6379", *more], tmp_path, NODE_IP="127.0.0.1", RERANK_STATE=str(tmp_path)
    )

    result = runner.invoke(app, words)

    assert result.exit_code == 0, result.output
    assert fake.last is not None
    assert fake.last.address == "head:6379"
    assert drained(fake) == [HERE.id]
    assert ("--force" in words) == bool(more)


def test_every_drain_command_in_the_documentation_works(fake: type[FakeCluster], tmp_path: Path) -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "cluster").rglob("*.md")]
    commands = {
        match.replace("NODE_ID", "bb11").replace("ADDRESS", "127.0.0.1")
        for page in pages
        for match in re.findall(r"rerank-service drain [^`\n|]+", page.read_text())
    }
    assert commands
    for command in commands:
        for words in words_of(["bash", "-c", command], tmp_path):
            assert runner.invoke(app, words).exit_code == 0, command
            assert drained(fake) == [HERE.id]


def test_no_other_manifest_or_script_drains_nodes() -> None:
    texts = {
        path: path.read_text()
        for path in (ROOT / "cluster").rglob("*")
        if path.suffix in (".tpl", ".yaml", ".sh", "") and path.is_file()
    }
    found = {path.name for path, text in texts.items() if re.search(r'rerank-service"? drain', text)}

    assert found == {"_worker.tpl", "manifests.yaml", "node.sh"}
