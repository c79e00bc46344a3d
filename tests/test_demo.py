"""The demo, as a user runs it: the real command in a folder of its own, and every other command going on from there."""

import json
import subprocess
from pathlib import Path

import forks
import pytest
from conftest import RUN_COMMAND, clean_environment

pytestmark = pytest.mark.long


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return forks.run([*RUN_COMMAND, *arguments], cwd=folder, env=clean_environment(), modules=forks.MODELS, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    result = run(folder, "demo", "out")
    assert result.returncode == 0, result.stderr
    (folder / "printed").write_text(result.stdout)
    (folder / "told").write_text(result.stderr)
    return folder


def test_it_shows_each_step_and_names_what_it_wrote(demo: Path) -> None:
    printed = (demo / "printed").read_text()
    for command in (
        "add",
        "sync --dry-run",
        "sync",
        "status",
        "select selective",
        "compare small large",
        "show",
        "query",
        "measures",
        "judge report better",
        "select selectit",
        "select superfilter_d",
        "compare --measure",
    ):
        assert f"$ recycledb {command}" in printed
    for name in (
        "recycledb.toml",
        "samples.json",
        "replies.jsonl",
        "recycle.db",
        "selective-small.json",
        "diverse.json",
    ):
        assert name in printed
        assert (demo / "out" / name).exists()
    assert "next: cd out && recycledb view" in (demo / "told").read_text()


def test_it_shows_other_methods_on_the_same_samples(demo: Path) -> None:
    printed = (demo / "printed").read_text()
    for student in ("small", "large"):
        assert f"measured selectit under {student}: 40 values" in printed
    assert "better: reflect_response against origin, judged by judge" in printed
    assert "(7.9% of the pairs flipped)" in printed
    mosaics, ruled = (
        [json.loads(line) for line in part.splitlines() if line.startswith('{"instruction"')]
        for part in printed.partition("'mosaic'")[2].split("'ruler'")
    )
    assert len(mosaics) == len(ruled) == 2
    assert all(set(row) == {"instruction", "output"} for row in mosaics + ruled)
    names = ["ifd/small", "ifd/large", "selectit/small", "selectit/large", "quality/judge", "ppl/small"]
    lines = printed.splitlines()
    for number, name in enumerate([*names, "length/small", "random/0"], 1):
        assert [line for line in lines if line.startswith(f"{number} {name} ")], name
    assert "hardly beat" in printed


def test_its_comments_and_configuration_fit_a_terminal(demo: Path) -> None:
    from recycledb.demo import CONFIGURATION, MEASURES

    text = (demo / "out" / "recycledb.toml").read_text()
    assert text == CONFIGURATION + MEASURES
    assert all(len(line) < 80 for line in MEASURES.splitlines())
    assert MEASURES.strip() in (demo / "printed").read_text()


def test_its_selections_differ_and_are_alpaca_json(demo: Path) -> None:
    for line in ("selective-small: 13 of 40 samples", "selective-large: 7 of 40 samples"):
        assert line in (demo / "printed").read_text()
    picks = [json.loads((demo / "out" / f"selective-{name}.json").read_text()) for name in ("small", "large")]
    assert picks[0] != picks[1]
    for rows in picks:
        assert rows
        assert all(set(row) == {"instruction", "input", "output"} for row in rows)


def test_median_ifd_is_below_one_under_both(demo: Path) -> None:
    sql = "SELECT student, median(ifd_ppl) AS ifd FROM scores GROUP BY student"
    found = json.loads(run(demo / "out", "query", sql, "--format", "json").stdout)
    assert {row["student"] for row in found} == {"small", "large"}
    assert all(row["ifd"] < 1 for row in found)


def test_other_commands_go_on_from_there(demo: Path) -> None:
    again = run(demo / "out", "sync")
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    status = json.loads(run(demo / "out", "status", "--json").stdout)
    assert status["missing"]["ready"] == 0
    assert run(demo / "out", "db", "check").returncode == 0


def test_it_can_be_run_again_and_leaves_other_folders_alone(demo: Path) -> None:
    assert run(demo, "demo", "out").returncode == 0
    other = demo / "other"
    other.mkdir()
    (other / "recycledb.toml").write_text("[store]\n")
    refused = run(demo, "demo", "other")
    assert refused.returncode == 1
    assert "give another folder" in refused.stderr
