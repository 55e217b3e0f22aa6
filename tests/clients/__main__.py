"""`make clients`: tests the vendors' own clients, in separate environments, against one running service. The
environments are made once from pinned requirements, under `.bench/clients`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks.ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".bench" / "clients"
START_LIMIT_S = 300
_IN_PROCESS = "in-process"
"""The environment that also sees the packages of the running environment, because its tests load a model."""
_STAY_AT_HOME = {
    "AGNO_TELEMETRY": "false",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there; AIPerf refuses a local tokenizer with HF_HUB_OFFLINE
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime of pymilvus.model and AIPerf otherwise reports to Microsoft
}
"""Environment variables that keep clients from calling anything but the service."""


class Outcome(NamedTuple):
    """The result of one client with one dialect."""

    client: str
    dialect: str
    num_passed: int
    num_failed: int


def main() -> None:
    """Exits with 1 unless all tests passed."""
    names = [path.stem for path in sorted((HERE / "requirements").glob("*.txt"))]
    for name in names:
        install(name)
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder)) as url:
        outcomes = [outcome for name in names for outcome in run(name, url, Path(folder))]
    print("\n" + table(outcomes))
    sys.exit(any(outcome.num_failed for outcome in outcomes) or not outcomes)


def install(name: str) -> None:
    """Makes an environment, unless it exists already with the current requirements."""
    folder, requirements = ENVIRONMENTS / name, HERE / "requirements" / f"{name}.txt"
    packages = sorted((HERE / name).glob("package*.json"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (requirements, *packages))).hexdigest()
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return
    print(f"Installing {requirements.relative_to(ROOT)} into {folder.relative_to(ROOT)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if name == _IN_PROCESS:  # pip then installs only the packages that this environment lacks, without torch
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "service.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(requirements)], check=True)
    if packages:  # for JavaScript; the requirements contain Node
        for path in packages:
            shutil.copy(path, folder)
        npm = [str(folder / "bin" / "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(npm, check=True, cwd=folder)
    stamp.write_text(digest, encoding="utf-8")


@contextmanager
def running_service(folder: Path) -> Iterator[str]:
    """Runs `rerank-service serve` with the embedded model on a free loopback port, and yields the address."""
    config, port = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8")), free_port()
    config["http_options"]["port"] = port
    (model,) = config["applications"][0]["args"]["models"]
    model["aliases"] = ["all-MiniLM-L6-v2", "rerank-v3.5", "nvidia/llama-3.2-nv-rerankqa-1b-v2"]
    model["autoscaling"] = {"min_replicas": 1, "max_replicas": 1}
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-c", "from rerank_service.tools.cli import main; main()", "serve", str(path)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    with (folder / "service.log").open("wb") as log:
        service = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, service, folder / "service.log")
            yield url
        finally:
            service.terminate()
            service.wait(timeout=60)


def wait_until_ready(url: str, service: "subprocess.Popen[bytes]", log: Path) -> None:
    """Raises `RuntimeError` with the end of the log if the service does not start."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and service.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v1/health/ready", timeout=5):  # noqa: S310 - our own address
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the service did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")


def run(name: str, url: str, folder: Path) -> list[Outcome]:
    """Runs one environment's tests, and returns the outcomes by client and dialect."""
    report = folder / f"{name}.xml"
    command = [str(ENVIRONMENTS / name / "bin" / "python"), "-m", "pytest", "-c", str(HERE / "pytest.ini")]
    tests = map(str, sorted(HERE.glob(f"test_{name.replace('-', '_')}*.py")))
    address = {"RERANK_CLIENTS_URL": url, "CO_API_URL": url}  # Cohere's client in LanceDB reads CO_API_URL
    environment = {**os.environ, **_STAY_AT_HOME, **address}
    subprocess.run([*command, *tests, f"--junitxml={report}"], check=False, env=environment, cwd=ROOT)
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()  # noqa: S314 - our own report
    return [outcome_of(case) for case in cases] or [Outcome(name, "no test ran", 0, 1)]


def outcome_of(case: ElementTree.Element) -> Outcome:
    properties = {one.get("name"): one.get("value") for one in case.iter("property")}
    is_failed = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
    client, dialect = properties.get("client") or case.get("name") or "", properties.get("dialect") or ""
    return Outcome(client, dialect, int(not is_failed), int(is_failed))


def table(outcomes: list[Outcome]) -> str:
    """Returns a Markdown table with a row for each client and dialect."""
    rows: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes:
        row = rows.setdefault((outcome.client, outcome.dialect), [0, 0])
        row[0] += outcome.num_passed
        row[1] += outcome.num_failed
    lines = ["| client | dialect | result |", "|---|---|---|"]
    for (client, dialect), (num_passed, num_failed) in rows.items():
        result = f"{num_failed} of {num_passed + num_failed} failed" if num_failed else f"{num_passed} passed"
        lines.append(f"| {client} | {dialect} | {result} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
