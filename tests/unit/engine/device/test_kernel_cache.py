"""The folder of compiled kernels: where it is, who may write to it, and which kernels share it."""

import logging
import os
import stat
from pathlib import Path

import pytest

from rerank_service.engine.device import kernel_cache
from rerank_service.engine.device.kernel_cache import kernel_cache_key, kernel_cache_root, use_kernel_cache

GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RERANK_SERVICE_KERNELS", str(tmp_path / "kernels"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that the fixture restores what the test sets
        monkeypatch.delenv(name)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def used() -> list[Path]:
    return [Path(os.environ[name]) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")]


def test_the_folders_are_private(caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        folder = use_kernel_cache(GPU)
    finally:
        os.umask(before)

    assert folder.parent == kernel_cache_root()
    assert used() == [folder / "inductor", folder / "triton"]
    assert {mode(path) for path in (folder.parent, folder, *used())} == {0o700}
    assert caplog.text == ""
    assert use_kernel_cache(GPU) == folder  # as for the second model of a pool


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_not_used(bits: int, caplog: pytest.LogCaptureFixture) -> None:
    root = kernel_cache_root()
    root.mkdir()
    (root / kernel_cache_key(GPU)).mkdir()
    (root / kernel_cache_key(GPU)).chmod(bits)

    with caplog.at_level(logging.WARNING):
        folder = use_kernel_cache(GPU)

    assert root not in folder.parents
    assert mode(folder) == 0o700
    assert f"mode {bits:o}" in caplog.text
    assert "RERANK_SERVICE_KERNELS" in caplog.text


def test_a_folder_of_another_user_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = kernel_cache_root()
    root.mkdir()
    owner = os.geteuid() + 1
    monkeypatch.setattr(kernel_cache.os, "geteuid", lambda: owner)
    root.rename(kernel_cache_root())

    with caplog.at_level(logging.WARNING):
        folder = use_kernel_cache(GPU)

    assert kernel_cache_root() not in folder.parents
    assert f"belongs to user {owner - 1}" in caplog.text


def test_a_link_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    kernel_cache_root().symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        use_kernel_cache(GPU)
    assert "is a link" in caplog.text
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_cannot_be_created_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RERANK_SERVICE_KERNELS", str(tmp_path / "file/kernels"))
    with caplog.at_level(logging.WARNING):
        folder = use_kernel_cache(GPU)
    assert mode(folder) == 0o700
    assert "not kept for the next start" in caplog.text


def test_an_operators_folder_is_used_if_it_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    private, open_ = tmp_path / "private", tmp_path / "open"
    open_.mkdir()
    open_.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(private))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(open_))
    with caplog.at_level(logging.WARNING):
        use_kernel_cache(GPU)

    inductor, triton = used()
    assert inductor == private
    assert open_ not in (triton, *triton.parents)
    assert str(open_) in caplog.text


def test_the_folder_is_in_the_users_cache_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RERANK_SERVICE_KERNELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel_cache_root() == tmp_path / f"rerank-service-kernels-{os.geteuid()}"


def test_kernels_of_other_versions_have_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = [kernel_cache_key(GPU), kernel_cache_key("NVIDIA L4")]
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build")
    monkeypatch.setattr(kernel_cache, "_DRIVER_FILE", driver)
    keys.append(kernel_cache_key(GPU))
    monkeypatch.setattr(kernel_cache.torch, "__version__", "2.99.0")
    keys.append(kernel_cache_key(GPU))
    monkeypatch.setattr(kernel_cache, "_code_digest", lambda: "changed")
    keys.append(kernel_cache_key(GPU))

    assert len(set(keys)) == 5
    assert all("/" not in key and " " not in key for key in keys)
