"""The locks of the image pin every package by hash, in the versions of constraints.txt, for each platform."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cluster.lock import EXTRAS, LOCKS, PLATFORMS, lock_text
from cluster.validate.repository import lock_faults
from tests.unit.cluster.test_images import instructions

ROOT = Path(__file__).parents[3]
PIN = re.compile(r"(?m)^([a-z0-9][a-z0-9.-]*)==(\S+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    text = re.sub(r"(?m)^[^#\s]+", lambda found: found[0].lower().replace("_", "-"), path.read_text())
    return {normal(name): version.partition("+")[0] for name, version in PIN.findall(text)}


@pytest.fixture(params=PLATFORMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_package_has_one_version_and_hashes(name: str) -> None:
    assert list(lock_faults(name, (LOCKS / f"{name}.txt").read_text(), is_cuda=name.endswith("cuda"))) == []


def test_the_versions_are_those_that_the_tests_run(name: str) -> None:
    tested, locked = pins(ROOT / "constraints.txt"), pins(LOCKS / f"{name}.txt")
    assert {name: locked[name] for name in tested.keys() & locked.keys()} == {
        name: tested[name] for name in tested.keys() & locked.keys()
    }
    assert len(tested.keys() & locked.keys()) > 80


def test_the_lock_has_what_the_package_and_its_extras_need(name: str) -> None:
    locked = pins(LOCKS / f"{name}.txt")
    environments = [{"extra": extra} for extra in ("", *EXTRAS)]
    needed = {
        normal(requirement.name)
        for requirement in map(Requirement, requires("rerank-service") or [])
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments)
    }
    assert needed - locked.keys() == set()


def test_the_cpu_lock_has_torchs_build_without_cuda() -> None:
    text = (LOCKS / "linux-x86_64-cpu.txt").read_text()
    assert re.search(r"(?m)^torch==\S+\+cpu ", text)
    assert not re.search("(?m)^(nvidia|cuda|triton)", text)


def test_the_image_installs_the_locks() -> None:
    assert "LOCKED=--locked" in instructions("ARG")
    assert f"EXTRAS={','.join(EXTRAS)}" in instructions("ARG")
    assert any("--require-hashes --requirement cluster/locks/uv.txt" in line for line in instructions("RUN"))
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("uv=="))
    assert pinned in (LOCKS / "uv.txt").read_text()


def test_a_package_with_two_wheels_has_both_hashes() -> None:
    wheels = [{"hashes": {"sha256": digest * 64}} for digest in "ba"]
    text = lock_text("linux", [{"name": "one", "version": "1", "wheels": wheels}])
    assert text.endswith(f"one==1 \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\n")
