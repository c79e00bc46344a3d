"""A student's identity: what changes it, what does not, and the cache of digests."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from recycledb.errors import StudentError
from recycledb.scoring import identity
from recycledb.scoring.identity import Identity, file_digest, identify

PARAMETERS = 3 * 5 + 7


def safetensors(value: float) -> bytes:
    return bytes(save({"a": np.full((3, 5), value, np.float32), "b": np.zeros(7, np.float32)}, {"format": "pt"}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "recycledb" / "digests"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "student"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(safetensors(1))
    return path


def test_a_folder_is_its_content(folder: Path, tmp_path: Path) -> None:
    found = identify(str(folder))
    assert found == Identity(found.revision, PARAMETERS, local=True)
    assert found.revision.startswith("sha256:")
    assert len(found.revision) == len("sha256:") + 64
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert identify(str(moved)) == found


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_change_is_another_student(folder: Path, name: str) -> None:
    before = identify(str(folder))
    content = safetensors(2) if name == "model.safetensors" else b'{"changed": true}'
    (folder / name).write_bytes(content)
    assert identify(str(folder)).revision != before.revision


@pytest.mark.parametrize("name", ["README.md", "optimizer.pt", "training_args.bin", "generation_config.json", "x.bin"])
def test_what_no_loss_depends_on_does_not_count(folder: Path, name: str) -> None:
    before = identify(str(folder))
    (folder / name).write_text("another file")
    assert identify(str(folder)) == before


def test_a_file_more_or_renamed_is_another_student(folder: Path) -> None:
    before = identify(str(folder))
    (folder / "special_tokens_map.json").write_text("{}")
    more = identify(str(folder))
    (folder / "special_tokens_map.json").rename(folder / "added_tokens.json")
    assert len({before.revision, more.revision, identify(str(folder)).revision}) == 3


def test_old_weights_have_no_known_size(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    assert identify(str(folder)).parameters is None


def test_shards_count_together_or_not_at_all(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert identify(str(folder)).parameters is None
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors(2))
    assert identify(str(folder)).parameters == 2 * PARAMETERS


def test_a_damaged_header_does_not_hinder_identification(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 9)
    assert identify(str(folder)).parameters is None


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "has no config.json"), ("model.safetensors", "weights")]
)
def test_an_incomplete_folder_is_refused(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(StudentError, match=message):
        identify(str(folder))


@pytest.mark.parametrize("model", ["./nowhere", "/no/where", "a/b/c", "~/no-such-folder-here"])
def test_a_path_that_is_no_folder_is_refused(model: str) -> None:
    with pytest.raises(StudentError, match="is not a folder"):
        identify(model)


def test_a_name_that_cannot_be_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudentError, match="neither a folder nor"):
        identify("no spaces allowed/in names")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_own_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code where huggingface_hub has not yet read its settings from the environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_hub_model_is_its_cached_commit(tmp_path: Path, folder: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    code = "from recycledb.scoring.identity import identify; print(identify('someone/something'))"
    run = in_own_process(code, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    assert run.stdout.strip() == repr(Identity(COMMIT, PARAMETERS, local=False)), run.stderr


@pytest.mark.long
def test_offline_and_unknown_is_one_clear_error(tmp_path: Path) -> None:
    code = (
        "from recycledb.scoring.identity import identify\n"
        "from recycledb.errors import StudentError\n"
        f"print(identify('someone/something', '{COMMIT}').revision)\n"
        "try:\n    identify('someone/something')\n"
        "except StudentError as error:\n    print(error)\n"
    )
    run = in_own_process(code, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    commit, message = run.stdout.splitlines()
    assert commit == COMMIT
    assert "'someone/something' is not a folder, is not in the local Hugging Face cache" in message


def test_identification_loads_neither_torch_nor_transformers() -> None:
    run = in_own_process("import sys, recycledb.scoring.identity, recycledb.scoring; print('torch' in sys.modules)")
    assert run.stdout.strip() == "False"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(b"x" * identity._CACHE_FROM_BYTES)
    os.utime(path, (time.time() - 60,) * 2)
    return path


def test_a_digest_is_cached_until_the_file_changes(large: Path, own_cache: Path) -> None:
    digest = file_digest(large)
    (entry,) = own_cache.iterdir()
    assert entry.read_text() == digest
    entry.write_text("0" * 64)  # seen in place of the file's own digest: the file was not read again
    assert file_digest(large) == "0" * 64
    large.write_bytes(b"y" * identity._CACHE_FROM_BYTES)
    assert file_digest(large) not in (digest, "0" * 64)


def test_a_damaged_cache_entry_is_computed_anew(large: Path, own_cache: Path) -> None:
    digest = file_digest(large)
    (entry,) = own_cache.iterdir()
    for damage in (b"", b"\xff\xfe", b"12ab", b"Z" * 64):
        entry.write_bytes(damage)
        assert file_digest(large) == digest
        assert entry.read_text() == digest


def test_a_file_just_written_is_not_cached(large: Path, own_cache: Path) -> None:
    large.touch()
    file_digest(large)
    assert not own_cache.exists()


def test_no_cache_directory_is_no_error(large: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert file_digest(large) == file_digest(large)
