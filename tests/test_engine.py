"""The engine against the naive loop, on real tiny models of several architectures."""

from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from tiny_students import ARCHITECTURES, SAMPLES, save_student, transformers

from recycledb.schema import LossStatus, Stat, Texts
from recycledb.scoring.engine import Engine
from recycledb.scoring.requests import Request, Result

STATS = tuple(Stat)

# Two threads cost a tiny model more than they bring, all the more when tests run side by side.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one tiny model of each architecture."""
    folder = tmp_path_factory.mktemp("students")
    return {name: save_student(folder / name, name) for name in ARCHITECTURES}


def ask(samples: list[Texts]) -> list[Request]:
    return [Request(i, texts, STATS) for i, texts in enumerate(samples)]


def collect(batches: Any) -> dict[tuple[int, Stat], Result]:
    results = [result for batch in batches for result in batch]
    by_key = {(result.key, result.stat): result for result in results}
    assert len(by_key) == len(results)
    return by_key


def assert_agrees(results: dict[tuple[int, Stat], Result], folder: Path, prompt: str, max_length: int) -> None:
    """Hold every result against the naive loop."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for i, texts in enumerate(SAMPLES):
        for stat, expected in naive.score(model, tokenizer, prompt, max_length, texts).items():
            result = results[i, Stat(stat)]
            assert result.n_tokens == expected.n_tokens, (i, stat)
            assert (result.status is LossStatus.OK) == (expected.loss_sum is not None), (i, stat)
            if expected.loss_sum is not None:
                assert result.loss_sum == pytest.approx(expected.loss_sum, rel=1e-4), (i, stat)


@pytest.mark.parametrize("prompt", ["vicuna", "none"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_the_naive_loop(students: dict[str, Path], architecture: str, prompt: str) -> None:
    max_length = 256
    with Engine.load(str(students[architecture]), prompt=prompt, max_length=max_length, device="cpu") as engine:
        results = collect(engine.score(ask(SAMPLES)))
    assert_agrees(results, students[architecture], prompt, max_length)
