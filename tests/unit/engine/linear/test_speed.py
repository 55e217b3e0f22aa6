"""Speeds of a layer: measured once per machine, kept in a private folder, and measured again if the file is no use."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rerank_service.config import Dtype
from rerank_service.engine.device.precision import Precision, allowed_precisions, multiplies_int8
from rerank_service.engine.linear import speed
from rerank_service.engine.linear.speed import layer_seconds, processor_name

PRECISIONS = (Precision(torch.float32), Precision(torch.float32, Dtype.INT8))

needs_int8 = pytest.mark.skipif(not multiplies_int8(), reason="this processor does not multiply 8-bit integers")


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of the cache; the cache in memory is empty, as in a new process."""
    monkeypatch.setenv("RERANK_SERVICE_KERNELS", str(tmp_path / "kernels"))
    layer_seconds.cache_clear()
    yield speed.kernel_cache_root()
    layer_seconds.cache_clear()


@needs_int8
@pytest.mark.parametrize("is_decoder", [False, True])
def test_each_precision_has_a_time(is_decoder: bool) -> None:
    torch.set_num_threads(2)
    seconds = layer_seconds(PRECISIONS, 384, is_decoder=is_decoder)

    assert len(seconds) == 2
    assert all(0 < one < 60 for one in seconds)
    assert torch.get_num_threads() == 2


@needs_int8
def test_the_layer_computes_in_the_precision_that_is_timed() -> None:
    passes = speed._passes(PRECISIONS, 384, False)
    with torch.inference_mode():
        exact, rounded = (run() for run in passes)

    assert exact.shape == (8 * 128, 384)
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.3, rtol=0)


def test_a_new_process_reads_what_an_earlier_one_measured(root: Path) -> None:
    measured = layer_seconds(PRECISIONS[:1], 400, is_decoder=False)
    (file,) = (root / "cpu-speed").iterdir()
    assert file.stat().st_mode & 0o077 == 0 or file.parent.stat().st_mode & 0o077 == 0
    file.write_text(json.dumps({"float32": 7.5}))
    assert layer_seconds(PRECISIONS[:1], 400, is_decoder=False) == measured  # not read again in this process

    layer_seconds.cache_clear()

    assert layer_seconds(PRECISIONS[:1], 400, is_decoder=False) == (7.5,)
    assert layer_seconds(PRECISIONS[:1], 380, is_decoder=False) == (7.5,)  # the same size is measured for both


@pytest.mark.parametrize("damage", ["{", "[]", '{"float32": 0}', '{"float32": "fast"}', '{"float32": null}', "{}"])
def test_a_damaged_file_is_measured_again(root: Path, damage: str) -> None:
    layer_seconds(PRECISIONS[:1], 384, is_decoder=False)
    (file,) = (root / "cpu-speed").iterdir()
    file.write_text(damage)
    layer_seconds.cache_clear()

    (seconds,) = layer_seconds(PRECISIONS[:1], 384, is_decoder=False)

    assert json.loads(file.read_text()) == {"float32": seconds}


def test_other_masks_and_versions_have_their_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [speed._file(PRECISIONS, 384, False), speed._file(PRECISIONS, 384, True)]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    files.append(speed._file(PRECISIONS, 384, False))
    monkeypatch.setattr(speed, "__version__", "0.0.0")
    files.append(speed._file(PRECISIONS, 384, False))
    assert len(set(files)) == 4


@pytest.mark.parametrize("bits", [0o777, 0o500])
def test_a_folder_that_cannot_be_used_is_no_error(root: Path, bits: int) -> None:
    root.mkdir()
    if bits == 0o500:
        (root / "cpu-speed").write_text("a file in place of the folder")
    else:
        root.chmod(bits)

    assert layer_seconds(PRECISIONS[:1], 384, is_decoder=False)[0] > 0

    assert not (root / "cpu-speed").is_dir()


def test_a_layer_runs_in_every_allowed_precision() -> None:
    precisions = allowed_precisions(Dtype.FASTEST, torch.device("cpu"))
    assert all(0 < one < 60 for one in layer_seconds(precisions, 384, is_decoder=False))


def test_the_processor_is_named_with_its_instructions() -> None:
    assert speed.instruction_set().name in processor_name()
