"""The release workflow is valid, runs only where a maintainer allows it, and pins the actions that it uses."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerank_service import __version__
from tests.unit.cluster.test_images import instructions, program

ROOT = Path(__file__).parents[3]
RELEASE = ROOT / ".github/workflows/release.yml"


@pytest.fixture
def jobs() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(RELEASE.read_text())
    assert document["permissions"] == {}
    jobs: dict[str, Any] = document["jobs"]
    return jobs


def test_the_workflow_is_valid() -> None:
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(RELEASE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_maintainer_switches_it_on(jobs: dict[str, Any]) -> None:
    gate = jobs.pop("version")
    assert gate["if"] == "vars.RELEASE == 'on'"
    assert all(job["needs"] == "version" for job in jobs.values())


def test_every_action_is_pinned_to_a_commit(jobs: dict[str, Any]) -> None:
    used = re.findall(r"uses: (.*)", RELEASE.read_text())
    assert used
    assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_no_job_has_more_rights_than_it_needs(jobs: dict[str, Any]) -> None:
    rights = {
        name: {right for right, level in job["permissions"].items() if level == "write"} for name, job in jobs.items()
    }
    assert rights == {
        "version": set(),
        "image": {"packages", "id-token"},
        "wheels": {"id-token", "attestations"},
        "docs": set(),
    }
    assert all(
        step["with"]["persist-credentials"] is False
        for job in jobs.values()
        for step in job["steps"]
        if step.get("uses", "").startswith("actions/checkout@")
    )


def test_both_variants_are_built_with_arguments_of_the_dockerfile(jobs: dict[str, Any]) -> None:
    image = jobs["image"]
    assert image["strategy"]["matrix"]["variant"] == ["cpu", "cuda"]
    builds = [step["with"] for step in image["steps"] if "build-push-action" in step.get("uses", "")]
    assert len(builds) == 2
    known = {line.partition("=")[0] for line in instructions("ARG")}
    for build in builds:
        given = {line.partition("=")[0] for line in build["build-args"].splitlines()}
        assert given == {"VARIANT", "VERSION", "REVISION"}
        assert given <= known
        assert build["file"] == "cluster/Dockerfile"
    assert builds[-1]["push"] is True
    assert builds[-1]["sbom"] is True
    assert builds[-1]["provenance"] == "mode=max"


@pytest.mark.parametrize("tag", ["v{}", "v0.0.0-other"])
def test_the_tag_must_be_the_version(jobs: dict[str, Any], tag: str, tmp_path: Path) -> None:
    (check,) = [step["run"] for step in jobs["version"]["steps"] if step.get("id") == "check"]
    output = tmp_path / "output"
    environment = {"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": tag.format(__version__), "GITHUB_OUTPUT": str(output)}
    code = subprocess.run(["bash", "-e", "-c", check], cwd=ROOT, env=environment, check=False).returncode

    assert (code == 0) == (tag == "v{}")
    assert not output.exists() or output.read_text() == f"version={__version__}\n"
