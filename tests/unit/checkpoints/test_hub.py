"""Pulls from an HTTP server with the hub's protocol, with and without faults."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import snapshot_download

from rerank_service import __version__
from rerank_service.checkpoints.pull import pull
from rerank_service.checkpoints.verification import MANIFEST_FILE
from rerank_service.errors import CheckpointError
from tests.fake_hub import FakeHub, Fault
from tests.fetching import ID, contents, hub_with, isolated_environment, record_pauses

WEIGHTS = "model.safetensors"


@pytest.fixture
def files(checkpoints: dict[str, Path]) -> dict[str, bytes]:
    return contents(checkpoints["bert"])


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with hub_with(files) as (server, _):
        isolated_environment(monkeypatch, tmp_path, server.url)
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return record_pauses(monkeypatch)


def fetched_files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name != MANIFEST_FILE}


def commit_at(hub: FakeHub, branch: str = "main") -> str:
    return hub.repositories[ID].branches[branch]


def test_the_fake_hub_serves_the_client_of_huggingface_hub(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = snapshot_download(ID, endpoint=hub.url, cache_dir=tmp_path / "theirs", revision=commit_at(hub))
    assert contents(Path(folder)) == files
    assert {request.method for request in hub.asked_for("resolve")} == {"HEAD", "GET"}


def test_every_byte_arrives_and_is_recorded_in_the_manifest(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    fetched = pull(ID)

    assert fetched.folder == tmp_path / "cache" / "hub" / "org--tiny" / commit_at(hub)
    assert fetched_files(fetched.folder) == files
    assert fetched.received_bytes == sum(map(len, files.values()))
    manifest = json.loads((fetched.folder / MANIFEST_FILE).read_text())
    assert (manifest["source"], manifest["revision"]) == (ID, commit_at(hub))
    assert manifest["files"][WEIGHTS]["sha256"] == hashlib.sha256(files[WEIGHTS]).hexdigest()
    assert manifest["files"][WEIGHTS]["checked_against"] == "sha256"
    assert manifest["files"]["config.json"]["checked_against"] == "git-sha1"
    assert {request.headers["user-agent"] for request in hub.seen} == {f"rerank-service/{__version__}"}
    assert not any(path.is_symlink() for path in fetched.folder.iterdir())


def test_only_files_that_engines_read_are_fetched(hub: FakeHub, files: dict[str, bytes]) -> None:
    others = {
        "README.md": b"...",
        "modeling.py": b"import os",
        "pytorch_model.bin": b"p" * 60_000,
        "onnx/model.onnx": b"o" * 60_000,
        "onnx/config.json": b"{}",
        "model.fp16.safetensors": b"s" * 60_000,
        "adapter_config.json": b'{"base_model_name_or_path": "other/model"}',
    }
    commit = hub.put(ID, files | others)

    assert fetched_files(pull(ID, commit).folder) == files
    assert {request.path.rpartition("/")[2] for request in hub.asked_for("resolve")} == set(files)


def test_the_projections_of_a_colbert_model_come_in_their_folders(hub: FakeHub, files: dict[str, bytes]) -> None:
    modules = {"1_Dense/config.json": b"{}", "1_Dense/model.safetensors": files[WEIGHTS], "artifact.metadata": b"{}"}
    others = {"1_Dense/pytorch_model.bin": b"p", "1_Pooling/config.json": b"{}", "1_Dense/deeper/config.json": b"{}"}
    commit = hub.put(ID, files | modules | others)
    folder = pull(ID, commit).folder

    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(MANIFEST_FILE)
    assert found == files | modules
    (folder / "1_Dense/model.safetensors").write_bytes(b"damaged")
    assert pull(ID, commit).received_bytes > 0
    assert (folder / "1_Dense/model.safetensors").read_bytes() == files[WEIGHTS]


@pytest.mark.parametrize("name", ["../config.json", "../../evil.safetensors", "/etc/evil.json", ".hidden.safetensors"])
def test_no_name_leads_out_of_the_folder(hub: FakeHub, files: dict[str, bytes], name: str, tmp_path: Path) -> None:
    commit = hub.put(ID, files | {name: b"evil"})
    folder = pull(ID, commit).folder

    assert fetched_files(folder) == files
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.parent for path in written} == {folder}


def test_a_paged_listing_is_read_completely(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.page_size = 2
    assert fetched_files(pull(ID).folder) == files


def test_a_moved_branch_gets_its_own_folder_and_only_changed_files_are_fetched(
    hub: FakeHub, files: dict[str, bytes]
) -> None:
    before = pull(ID)
    hub.put(ID, files | {"config.json": files["config.json"] + b"\n"})
    after = pull(ID, "main")

    assert before.manifest.revision != after.manifest.revision == commit_at(hub)
    assert fetched_files(before.folder) == files  # replicas pinned to the old commit keep working
    assert len(hub.asked_for(f"?name={WEIGHTS}")) == 1
    assert after.received_bytes < 50_000 < before.received_bytes


def test_files_in_the_cache_of_huggingface_hub_are_not_fetched_again(hub: FakeHub, files: dict[str, bytes]) -> None:
    snapshot_download(ID, endpoint=hub.url, revision=commit_at(hub))
    hub.seen.clear()

    fetched = pull(ID)
    assert (fetched.received_bytes, fetched_files(fetched.folder)) == (0, files)
    assert not hub.asked_for("resolve")


def test_damaged_files_in_the_cache_of_huggingface_hub_are_fetched_and_left_unchanged(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    blob = tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs" / hashlib.sha256(files[WEIGHTS]).hexdigest()
    blob.parent.mkdir(parents=True)
    damaged = b"x" * len(files[WEIGHTS])
    blob.write_bytes(damaged)

    assert fetched_files(pull(ID).folder) == files
    assert blob.read_bytes() == damaged


def test_an_interrupted_transfer_resumes(hub: FakeHub, files: dict[str, bytes], pauses: list[float]) -> None:
    hub.faults = [
        Fault(f"?name={WEIGHTS}", cut_after_bytes=200_000),
        Fault(f"?name={WEIGHTS}", cut_after_bytes=100_000),
        Fault("tokenizer.json", cut_after_bytes=1_000),
    ]
    fetched = pull(ID)

    assert fetched_files(fetched.folder) == files
    assert fetched.received_bytes == sum(map(len, files.values()))
    asked = [request.headers.get("range") for request in hub.seen if request.is_storage]
    assert asked == [None, "bytes=200000-", "bytes=300000-"]


def test_bytes_received_before_giving_up_are_kept(hub: FakeHub, files: dict[str, bytes], pauses: list[float]) -> None:
    hub.faults = [
        Fault(f"?name={WEIGHTS}", cut_after_bytes=300_000),
        Fault(f"?name={WEIGHTS}", cut_after_bytes=0, times=9),
    ]
    with pytest.raises(CheckpointError, match=r"cannot fetch model\.safetensors of org/tiny.*resumes from there"):
        pull(ID)
    assert pauses == sorted(pauses)
    hub.faults = []

    fetched = pull(ID)
    assert fetched_files(fetched.folder) == files
    assert fetched.received_bytes <= sum(map(len, files.values())) - 300_000


def test_a_file_starts_over_if_the_mirror_does_not_support_ranges(
    hub: FakeHub, files: dict[str, bytes], pauses: list[float]
) -> None:
    hub.faults = [
        Fault(f"?name={WEIGHTS}", cut_after_bytes=200_000),
        Fault(f"?name={WEIGHTS}", ignores_range=True),
    ]
    assert fetched_files(pull(ID).folder) == files


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_corrupt_bytes_are_detected_and_not_kept(hub: FakeHub, files: dict[str, bytes], name: str) -> None:
    hub.faults = [Fault(f"name={name}" if name == WEIGHTS else name, corrupts=True)]
    with pytest.raises(CheckpointError, match=f"{name} of org/tiny does not match its digest"):
        pull(ID)

    assert fetched_files(pull(ID).folder) == files


def test_wrong_bytes_left_by_an_earlier_pull_are_discarded(hub: FakeHub, files: dict[str, bytes]) -> None:
    stage = pull(ID).folder
    weights = stage / WEIGHTS
    weights.write_bytes(b"x" * 1000)
    stage.rename(stage.with_name(f".{stage.name}.partial"))

    assert fetched_files(pull(ID).folder) == files


def test_pulling_again_checks_every_byte_and_repairs_the_files(
    hub: FakeHub, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    folder = pull(ID).folder
    damaged = bytearray(files[WEIGHTS])
    damaged[len(damaged) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(damaged)
    (folder / "tokenizer.json").unlink()
    hub.seen.clear()

    again = pull(ID)

    assert fetched_files(folder) == files
    assert again.received_bytes == len(files[WEIGHTS]) + len(files["tokenizer.json"])
    assert "damaged, fetching it again" in caplog.text
    assert not list(folder.parent.glob(".*.partial"))


def test_a_complete_commit_needs_no_network_unless_a_byte_is_wrong(hub: FakeHub, files: dict[str, bytes]) -> None:
    first = pull(ID)
    hub.seen.clear()
    assert pull(ID, commit_at(hub)) == first._replace(received_bytes=0)
    assert not hub.seen

    damaged = files["tokenizer.json"].replace(b"the", b"teh", 1)
    (first.folder / "tokenizer.json").write_bytes(damaged)
    assert pull(ID, commit_at(hub)).received_bytes == len(damaged)
    assert fetched_files(first.folder) == files


def test_429_and_503_are_retried_after_a_pause(hub: FakeHub, files: dict[str, bytes], pauses: list[float]) -> None:
    hub.faults = [
        Fault("/revision/", status=429, headers={"Retry-After": "7"}),
        Fault("/tree/", status=503),
        Fault(f"?name={WEIGHTS}", status=503, headers={"Retry-After": "3"}),
    ]
    assert fetched_files(pull(ID).folder) == files
    assert pauses == [8.0, 1, 4.0]  # huggingface_hub adds a second to Retry-After


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/revision/", status=429, times=9), r"rate limit is exhausted \(429\).*HF_TOKEN"),
        (Fault("/revision/", status=500, times=9), r"the hub failed on org/tiny \(500\)"),
        (Fault("/revision/", status=401), r"org/tiny is not found or private \(401, with no token\).*HF_TOKEN"),
        (Fault("/revision/", status=403), r"the hub refuses org/tiny with no token \(403\).*HF_TOKEN"),
        (Fault("/revision/", status=200), "returns no commit for org/tiny; check that HF_ENDPOINT"),
        (Fault("/tree/", status=200), "does not answer like a model hub"),
    ],
)
def test_refusals_say_what_to_do(hub: FakeHub, pauses: list[float], fault: Fault, message: str) -> None:
    hub.faults = [fault]
    with pytest.raises(CheckpointError, match=message):
        pull(ID)


def test_an_unknown_model_and_an_unknown_revision_are_reported(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=r"org/nowhere is not found or private \(401, with no token\)"):
        pull("org/nowhere")
    with pytest.raises(CheckpointError, match=r"org/tiny at v9 does not exist: no branch, tag or commit.*commits/main"):
        pull(ID, "v9")
    with pytest.raises(CheckpointError, match=r"org/tiny at 0000.* does not exist"):
        pull(ID, "0" * 40)
    with pytest.raises(CheckpointError, match="neither a hub id ORGANISATION/NAME nor"):
        pull("../tiny")


def test_a_pull_request_of_the_hub_is_a_revision(hub: FakeHub, files: dict[str, bytes]) -> None:
    commit = hub.put(ID, files | {"config.json": files["config.json"] + b" "}, branch="refs/pr/1")
    assert pull(ID, "refs/pr/1").manifest.revision == commit != commit_at(hub)


def test_the_error_of_a_gated_model_names_its_page_and_the_token(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_with(files, token="hf_right", is_gated=True) as (hub, _):
        isolated_environment(monkeypatch, tmp_path, hub.url)
        with pytest.raises(CheckpointError, match=f"org/tiny is gated, and no token is set.*{hub.url}/org/tiny"):
            pull(ID)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(CheckpointError, match="is gated, and the given token has no access") as caught:
            pull(ID)
        assert "hf_wrong" not in str(caught.value)
        monkeypatch.setenv("HF_TOKEN", "hf_right")

        assert fetched_files(pull(ID).folder) == files
        assert not any("authorization" in request.headers for request in hub.seen if request.is_storage)
        assert all("authorization" in request.headers for request in hub.seen[-len(files) :] if not request.is_storage)


@pytest.mark.parametrize("name", ["model-Q4_K_M.gguf", "model.onnx"])
def test_weights_for_other_runtimes_are_refused_by_name(name: str, hub: FakeHub, files: dict[str, bytes]) -> None:
    others = {path: content for path, content in files.items() if path != WEIGHTS}
    commit = hub.put("org/converted", others | {name: b"w" * 60_000})

    with pytest.raises(CheckpointError, match=f"only {name}, which no engine reads: use the repository from which"):
        pull("org/converted", commit)
    assert not hub.asked_for("resolve")


def test_only_pickled_weights_are_refused_before_anything_is_fetched(hub: FakeHub, files: dict[str, bytes]) -> None:
    pickled = {name: content for name, content in files.items() if name != WEIGHTS}
    commit = hub.put("org/old", pickled | {"pytorch_model.bin": b"p" * 60_000})

    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        pull("org/old", commit)
    assert not hub.asked_for("resolve")


def test_weights_that_are_not_safetensors_are_refused(hub: FakeHub, files: dict[str, bytes]) -> None:
    commit = hub.put(ID, files | {WEIGHTS: b"no safetensors" * 10_000})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        pull(ID, commit)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_the_error_without_network_comes_at_once_and_says_how_to_copy_the_files(
    hub: FakeHub, pauses: list[float], monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(CheckpointError, match=rf"cannot reach {endpoint}.*--to FOLDER.*use it as source"):
        pull(ID)
    assert pauses == []


def test_retries_are_not_shown(
    hub: FakeHub, files: dict[str, bytes], pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults = [Fault("/revision/", status=503), Fault("/tree/", cut_after_bytes=10)]

    assert fetched_files(pull(ID).folder) == files
    assert pauses == [1, 1]
    assert caplog.text == ""


def test_offline_mode_sends_no_request(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids fetching it"):
        pull(ID)
    assert not hub.seen


def test_missing_disk_space_is_reported_before_the_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"too little disk space: org/tiny needs .* more.*RERANK_SERVICE_CACHE"):
        pull(ID)
    assert not hub.asked_for("resolve")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_readable_error(hub: FakeHub, tmp_path: Path) -> None:
    stage = tmp_path / "disk" / ".tiny.partial"
    stage.mkdir(parents=True)
    (stage / WEIGHTS).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"no space left in .*RERANK_SERVICE_CACHE or --to"):
        pull(ID, to=tmp_path / "disk" / "tiny")


def test_pulling_into_a_given_folder(hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    target = tmp_path / "models" / "tiny"
    assert pull(ID, to=target).folder == target
    assert fetched_files(target) == files

    commit = hub.put(ID, files | {"config.json": files["config.json"] + b" "})
    with pytest.raises(CheckpointError, match=r"contains org/tiny at .*: choose another folder"):
        pull(ID, commit, to=target)


def test_a_folder_with_other_files_is_left_unchanged(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(CheckpointError, match="contains files that `pull` did not write"):
        pull(ID, to=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_filled(hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    assert fetched_files(pull(ID, to=tmp_path / "volume").folder) == files


def test_sharded_weights_come_with_their_index(hub: FakeHub, files: dict[str, bytes]) -> None:
    index = json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    shards = {f"model-0000{number}-of-00002.safetensors": files[WEIGHTS] for number in (1, 2)}
    sharded = {name: content for name, content in files.items() if name != WEIGHTS} | shards
    commit = hub.put(ID, sharded | {"model.safetensors.index.json": index, "consolidated.safetensors": b"x" * 60_000})

    assert set(fetched_files(pull(ID, commit).folder)) == {*sharded, "model.safetensors.index.json"}


def test_an_index_with_a_path_outside_the_folder_is_refused(hub: FakeHub, files: dict[str, bytes]) -> None:
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    shards = {"model-00001-of-00001.safetensors": files[WEIGHTS], "model.safetensors.index.json": index}
    commit = hub.put(ID, {"config.json": files["config.json"]} | shards)

    with pytest.raises(CheckpointError, match=r"names '\.\./\.\./secret\.safetensors', which is not a file in"):
        pull(ID, commit)
