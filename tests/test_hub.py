# ruff: noqa: E501 - a table of data sets
"""Data sets of the Hub: which files are taken, what is said, and one line for each thing that can be wrong."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from hub_server import COMMIT, hub

ROW = b'{"question": "q%d", "answer": "a"}\n'
CARD = {"configs": [{"config_name": "extra", "data_files": "x.jsonl"},
                    {"config_name": "main", "default": True, "data_files": [{"split": "test", "path": "b.jsonl"}, {"split": "train", "path": "part-*"}]}]}  # fmt: skip
REPOS: dict[str, dict[str, Any]] = {
    "own/plain": {"files": {"README.md": b"x", "train.jsonl": ROW % 1, "test.jsonl": ROW % 2, "dataset_infos.json": b"{}"}},
    "own/card": {"files": {"x.jsonl": ROW % 1, "b.jsonl": ROW % 2, "part-1.jsonl": ROW % 3, "part-2.jsonl": ROW % 4}, "card": CARD},
    "own/none": {"files": {"README.md": b"x", "images.zip": b"x"}},
    "own/gated": {"refuses": (403, "GatedRepo")},
    "own/broken": {"refuses": (500, "")},
}  # fmt: skip


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with hub(REPOS) as url:
        yield url


def add(
    cli: Cli, endpoint: str, folder: Path, *words: str, code: int = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `add` against the stand-in, with a cache of its own."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return cli(
        "--store",
        f"sqlite:///{folder}/s.db",
        "add",
        *words,
        code=code,
        env={**settings, "NO_PROXY": "127.0.0.1", **env},
    )


@pytest.mark.long
def test_the_training_files_of_a_data_set(cli: Cli, endpoint: str, tmp_path: Path) -> None:
    done = add(cli, endpoint, tmp_path, "hf://datasets/own/plain", "hf://datasets/own/card", "--json")
    plain, card = json.loads(done.stdout)["datasets"]
    assert (plain["dataset"], plain["added"], plain["sources"]) == ("plain", 1, ["hf://datasets/own/plain/train.jsonl"])
    assert (card["dataset"], card["added"]) == ("card", 2)
    assert card["sources"] == [f"hf://datasets/own/card/part-{n}.jsonl" for n in (1, 2)]
    assert (
        f"plain: commit {COMMIT[:12]}: train.jsonl (those with train in their path); 1 other data files are left"
        in done.stderr
    )
    assert (
        f"card: commit {COMMIT[:12]}: part-1.jsonl, part-2.jsonl (configuration main, split train); 2 other"
        in done.stderr
    )
    again = add(cli, endpoint, tmp_path, "hf://datasets/own/plain/test.jsonl", "--dataset", "tests")
    assert "tests: 1 added, 0 already there, 0 rejected" in again.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("address", "env", "said"),
    [
        ("hf://datasets/own/missing", {}, "does not exist, or is private: check the name, or log in"),
        ("hf://datasets/own/gated", {}, "is gated: accept its terms on its page on the Hub, then log in"),
        ("hf://datasets/own/plain", {"HF_HUB_OFFLINE": "1"}, "cannot be looked up: HF_HUB_OFFLINE is set"),
        ("hf://datasets/own/plain", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be fetched ("),
        ("hf://datasets/own/none", {}, "has no data file that can be read; its files are README.md, images.zip"),
        ("hf://datasets/own/plain/valid.jsonl", {}, "is not in the data set; its data files are test.jsonl, train.jsonl"),
        ("hf://own/plain", {}, "is not an address of a data set: give hf://datasets/OWNER/NAME"),
    ],
)  # fmt: skip
def test_what_can_be_wrong_is_one_line(
    cli: Cli, endpoint: str, tmp_path: Path, address: str, env: dict[str, str], said: str
) -> None:
    done = add(cli, endpoint, tmp_path, address, code=1, **env)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"recycledb: {address} ") and said in line
