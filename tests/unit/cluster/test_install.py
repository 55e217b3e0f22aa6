"""cluster/install.sh uses uv, or else pip; it takes the build of torch that suits the machine, from a real HTTP server.

The programs uv, pip, nvidia-smi and uname are stand-ins that record how they were called.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
UV = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("uv=="))
NOWHERE = "http://127.0.0.1:9"  # nothing listens there

RECORD_UV = 'env | grep -E "^(UV_|SSL_CERT)" | sort >>"$LOG"; echo "uv $*" >>"$LOG"'
FAKE_UV = f"""#!/bin/sh
[ "$1" != --version ] || exit {{version_code}}
{RECORD_UV}
exit {{code}}
"""
# python -m pip is recorded; other Python code runs, without the packages of the test environment.
FAKE_PYTHON = f"""#!/bin/sh
if [ "$1 $2" != "-m pip" ]; then exec {sys.executable} -S "$@"; fi
shift 2
case $* in
    "config list") cat "$PIP_SETTINGS"; exit ;;
    *uv==*)
        echo "pip $*" >>"$LOG"
        [ -e "$WITH_UV" ] || exit 1
        cp "$WITH_UV" "${{0%/*}}/uv"; exit ;;
esac
echo "pip $*" >>"$LOG"
"""


class Outcome(NamedTuple):
    code: int
    calls: str
    stderr: str


class Machine:
    """A folder with what install.sh reads, and stand-ins for the programs that it calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.venv, self.log = folder / "venv", folder / "log"
        (folder / "cluster").mkdir()
        shutil.copy(ROOT / "cluster/install.sh", folder / "cluster")
        shutil.copy(ROOT / "constraints.txt", folder)
        self.program("uname", "echo Linux")
        self.program("nvidia-smi", "exit 127")
        self._write(self.venv / "bin/python", FAKE_PYTHON)
        self.settings = folder / "pip-settings"
        self.settings.touch()

    def program(self, name: str, script: str) -> None:
        self._write(self.bin / name, f"#!/bin/sh\n{script}\n")

    def uv(self, *, is_on_path: bool = True, code: int = 0) -> None:
        """Makes uv available, on PATH or from the index."""
        path = self.bin / "uv" if is_on_path else self.folder / "uv-from-index"
        self._write(path, FAKE_UV.format(version_code=0, code=code))

    def install(self, *arguments: str, **variables: str) -> Outcome:
        environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "LOG": str(self.log),
            "PIP_SETTINGS": str(self.settings),
            "WITH_UV": str(self.folder / "uv-from-index"),
            "TORCH_INDEX": NOWHERE,
        }
        result = subprocess.run(
            ["cluster/install.sh", *arguments],
            cwd=self.folder,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return Outcome(result.returncode, self.log.read_text() if self.log.exists() else "", result.stderr)

    @staticmethod
    def _write(path: Path, script: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Linux machine without a GPU and without uv."""
    return Machine(tmp_path)


@pytest.fixture
def indexes(tmp_path: Path) -> Iterator[str]:
    """Address of indexes with torch's builds cpu and cu126."""
    served = tmp_path / "indexes"
    for build in ("cpu", "cu126"):
        page = served / build / "torch/index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f"<a href=x>{TORCH.replace('==', '-')}+{build}-cp311-cp311-manylinux_2_28_x86_64.whl</a>")

    class Pages(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, directory=str(served), **options)  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_without_a_gpu_uv_gets_torchs_cpu_build(machine: Machine, indexes: str) -> None:
    machine.uv()

    outcome = machine.install("--editable", "venv", TORCH_INDEX=indexes)

    assert outcome.code == 0, outcome.stderr
    assert f"UV_FIND_LINKS={indexes}/cpu/torch/\n" in outcome.calls
    assert "UV_COMPILE_BYTECODE=1\n" in outcome.calls
    *_, call = outcome.calls.splitlines()
    assert call == "uv pip install --quiet --python venv/bin/python --constraint constraints.txt --editable ."
    assert outcome.stderr == ""


def test_extras_are_installed_and_editable_is_optional(machine: Machine) -> None:
    machine.uv()

    outcome = machine.install("venv", "cuda", "redis,tools")

    assert outcome.calls.splitlines()[-1].endswith("--constraint constraints.txt .[redis,tools]")


@pytest.mark.parametrize(("cuda", "page"), [("12.8", "{}/cu126/torch/"), ("13.0", "")])
def test_the_driver_decides_on_the_cuda_build(machine: Machine, indexes: str, cuda: str, page: str) -> None:
    machine.uv()
    machine.program("nvidia-smi", f'echo "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {cuda} |"')

    outcome = machine.install("venv", "auto", TORCH_INDEX=indexes)

    assert f"UV_FIND_LINKS={page.format(indexes)}\n" in outcome.calls


def test_macos_takes_the_build_of_the_package_index(machine: Machine, indexes: str) -> None:
    machine.uv()
    machine.program("uname", "echo Darwin")

    assert "UV_FIND_LINKS=\n" in machine.install("venv", TORCH_INDEX=indexes).calls


@pytest.mark.parametrize("torch", [TORCH, "torch==1.0"], ids=["unreachable", "another version"])
def test_without_the_build_auto_uses_the_package_index_and_says_so(
    machine: Machine, indexes: str, tmp_path: Path, torch: str
) -> None:
    machine.uv()
    (tmp_path / "constraints.txt").write_text(f"{torch}\n{UV}\n")

    outcome = machine.install("venv", TORCH_INDEX=NOWHERE if torch == TORCH else indexes)

    assert outcome.code == 0
    assert "UV_FIND_LINKS=\n" in outcome.calls
    assert f"{torch} cannot be had from" in outcome.stderr
    assert "about 3 GB" in outcome.stderr


def test_without_the_build_an_explicit_choice_fails_before_anything_is_installed(machine: Machine) -> None:
    machine.uv()

    outcome = machine.install("venv", "cpu")

    assert (outcome.code, outcome.calls) == (2, "")
    assert "set TORCH_CPU_INDEX=" in outcome.stderr
    assert machine.install("venv", "cpu", TORCH_CPU_INDEX="").code == 0


def test_an_index_of_ones_own_has_the_cpu_build(machine: Machine, indexes: str) -> None:
    machine.uv()

    outcome = machine.install("venv", "cpu", TORCH_CPU_INDEX=f"{indexes}/cpu")

    assert f"UV_FIND_LINKS={indexes}/cpu/torch/\n" in outcome.calls


def test_an_installed_torch_is_kept_without_asking_its_index(machine: Machine) -> None:
    machine.uv()
    metadata = machine.folder / f"{TORCH.replace('==', '-')}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {TORCH.partition('==')[2]}+cpu\n")

    outcome = machine.install("venv", PYTHONPATH=str(machine.folder))

    assert (outcome.code, outcome.stderr) == (0, "")  # the index is unreachable, which would be reported


def test_uv_comes_from_the_index_in_the_pinned_version(machine: Machine) -> None:
    machine.uv(is_on_path=False)

    first = machine.install("venv", "cuda")
    again = machine.install("venv", "cuda")

    pip, *_, uv = first.calls.splitlines()
    assert pip.startswith("pip ")
    assert pip.endswith(f"install {UV}")
    assert uv.startswith("uv pip install")
    assert again.calls.count(f"install {UV}") == 1


def test_pip_installs_where_uv_cannot_be_had(machine: Machine, indexes: str) -> None:
    outcome = machine.install("--editable", "venv", "cpu", "dev", TORCH_INDEX=indexes)

    assert outcome.code == 0
    *_, call = outcome.calls.splitlines()
    assert call == (
        "pip --quiet --disable-pip-version-check install --constraint constraints.txt "
        f"--find-links {indexes}/cpu/torch/ --editable .[dev]"
    )
    assert "pip installs instead" in outcome.stderr


def test_pip_installs_where_uv_fails(machine: Machine) -> None:
    machine.uv(code=1)

    outcome = machine.install("venv", "cuda")

    assert outcome.code == 0
    assert outcome.calls.splitlines()[-1].endswith("install --constraint constraints.txt .")
    assert "trying pip" in outcome.stderr


def test_a_broken_uv_on_path_is_not_used(machine: Machine) -> None:
    machine.program("uv", "exit 127")  # as a shim of pyenv
    machine.uv(is_on_path=False)

    assert machine.install("venv", "cuda").calls.splitlines()[-1].startswith("uv pip install")


def test_uv_uses_the_mirrors_and_certificates_of_pip(machine: Machine, indexes: str) -> None:
    machine.uv()
    machine.settings.write_text(
        ":env:.find-links='/mnt/wheels'\n"
        "global.cert='/etc/ours.pem'\n"
        "global.extra-index-url='\\nhttps://one/simple\\nhttps://two/simple'\n"
        "global.find-links='/elsewhere'\n"
        "global.index-url='https://mirror/simple'\n"
    )

    calls = machine.install("venv", TORCH_INDEX=indexes, UV_INDEX_URL="https://own/simple").calls

    assert f"UV_FIND_LINKS=/mnt/wheels,{indexes}/cpu/torch/\n" in calls
    assert "UV_INDEX_URL=https://own/simple\n" in calls
    assert "UV_EXTRA_INDEX_URL= https://one/simple https://two/simple\n" in calls
    assert "UV_INDEX_STRATEGY=unsafe-best-match\n" in calls
    assert "SSL_CERT_FILE=/etc/ours.pem\n" in calls


@pytest.fixture
def lock(machine: Machine) -> str:
    """A lock for the machine that the tests' uname reports."""
    machine.program("uname", 'if [ "${1-}" = -m ]; then echo x86_64; else echo Linux; fi')
    path = machine.folder / "cluster/locks/linux-x86_64-cuda.txt"
    path.parent.mkdir()
    path.write_text("torch==1.0 --hash=sha256:0\n")
    return path.relative_to(machine.folder).as_posix()


@pytest.mark.parametrize("has_uv", [True, False])
def test_a_lock_is_installed_by_its_hashes_and_the_package_alone(machine: Machine, lock: str, has_uv: bool) -> None:
    if has_uv:
        machine.uv()

    outcome = machine.install("--locked", "venv", "cuda")

    assert outcome.code == 0, outcome.stderr
    *_, packages, own = [call for call in outcome.calls.splitlines() if not call.startswith("UV_")]
    assert packages.endswith(f"--require-hashes --only-binary :all: --requirement {lock}")
    assert own.endswith("--no-deps --no-build-isolation --no-index .")
    assert "constraints.txt" not in packages + own


@pytest.mark.parametrize(
    ("arguments", "message"), [(["venv", "cpu"], "there is no lock"), (["venv", "cuda", "redis"], "no extras")]
)
def test_a_lock_that_does_not_exist_or_suit_is_refused(
    machine: Machine, lock: str, arguments: list[str], message: str
) -> None:
    machine.uv()

    outcome = machine.install("--locked", *arguments)

    assert (outcome.code, outcome.calls) == (2, "")
    assert message in outcome.stderr


def test_an_old_python_is_refused(machine: Machine) -> None:
    machine.program("old-python", "exit 1")

    outcome = machine.install("new", PYTHON=str(machine.bin / "old-python"))

    assert outcome.code == 2
    assert "Python 3.11 or newer is needed" in outcome.stderr
    assert not (machine.folder / "new").exists()


@pytest.mark.parametrize("arguments", [[], ["venv", "gpu"]])
def test_wrong_arguments_are_refused(machine: Machine, arguments: list[str]) -> None:
    outcome = machine.install(*arguments)

    assert (outcome.code, outcome.calls) == (2, "")
    assert "auto" in outcome.stderr


def test_make_installs_with_the_script(machine: Machine) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    machine.uv()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, machine.folder)
    environment = {"PATH": f"{machine.bin}:/usr/bin:/bin", "LOG": str(machine.log), "PIP_SETTINGS": os.devnull}

    def run() -> None:
        subprocess.run(
            [make, "tools", "VENV=venv", "TORCH=cuda"],
            cwd=machine.folder,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    run()
    first = machine.log.read_text()
    run()

    assert first.splitlines()[-1].endswith("--editable .[tools]")
    assert machine.log.read_text() == first  # nothing is installed again
