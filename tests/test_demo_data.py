"""The demo's data hold together: every question has its reply, every reply its use, and the students have learned something."""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from late import torch, transformers

from recycledb.formats import is_placeholder
from recycledb.methods import scored_kinds, steps
from recycledb.methods.reflection import Kind, Step, extract
from recycledb.schema import Texts

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "recycledb" / "demo"
STUDENTS = {"small": 529_056, "large": 2_164_416}
Graph = dict[tuple[Step, Texts], Texts | None]


@cache
def example(name: str) -> ModuleType:
    """Import a script of examples/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows() -> list[dict[str, str]]:
    """Return the samples as they stand in the file."""
    found: list[dict[str, str]] = json.loads((DEMO / "samples.json").read_text(encoding="utf-8"))
    return found


def samples() -> list[Texts]:
    """Return the distinct samples as they are stored: with an empty input where a placeholder stands."""
    return list(
        dict.fromkeys(
            Texts(r["instruction"], "" if is_placeholder(r["input"]) else r["input"], r["output"]) for r in rows()
        )
    )


def recording(name: str = "replies.jsonl") -> list[dict[str, Any]]:
    """Return the recorded replies."""
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def replies() -> dict[tuple[Step, Texts], str]:
    """Return the recorded replies by their question."""
    return {(Step(r["step"]), Texts(**r["reads"])): r["text"] for r in recording()}


def walk() -> Graph:
    """Ask every question that arises about the samples, and return what was extracted for each."""
    answers, given = replies(), Graph()

    def ask(step: Step, read: Texts) -> Texts | None:
        given[step, read] = extract(step, answers[step, read], read).texts
        return given[step, read]

    for origin in samples():
        ask(Step.REFLECT_RESPONSE, origin)
        short = ask(Step.COMPRESS, origin) if origin.input else origin
        harder = ask(Step.REFLECT_INSTRUCTION, short) if short else None
        if harder:
            ask(Step.REFLECT_RESPONSE, harder)
    return given


def intended() -> Graph:
    """Return, for each question, the texts that its reply was written to give."""
    build = example("build_demo_data")
    return {
        (Step(q.step), Texts(**q.reads)): Texts(**q.gives) if q.gives else None
        for written in build.read_written()
        for q in build.ask_all(written)
    }


def test_samples_are_varied() -> None:
    texts = [tuple(sorted(r.items())) for r in rows()]
    placeholders = [r["input"] for r in rows() if r["input"] and is_placeholder(r["input"])]
    words = sorted(len(s.output.split()) for s in samples())

    assert len(texts) == 41
    assert [n for _, n in Counter(texts).most_common(2)] == [2, 1]
    assert all(r.keys() == {"instruction", "input", "output"} for r in rows())
    assert placeholders == ["<noinput>", "No input."]
    assert sum(bool(s.input) for s in samples()) == 12
    assert (words[0], words[-1]) == (1, 196)


def test_texts_have_no_blanks_at_their_ends() -> None:
    assert all(text == text.strip() for sample in samples() for text in sample)
    assert all(text == text.strip() for r in recording() for text in r["reads"].values())


def test_every_question_has_a_reply_and_every_reply_its_question() -> None:
    assert walk().keys() == replies().keys()
    assert len(recording()) == len(replies()) == 128


def test_extraction_gives_what_was_meant() -> None:
    assert walk() == intended()


def test_five_replies_are_unusable_each_for_its_reason() -> None:
    reasons = [
        (r["step"], reason.partition(":")[0])
        for r in recording()
        if (reason := extract(Step(r["step"]), r["text"], Texts(**r["reads"])).reason)
    ]

    assert sorted(reasons) == [
        ("compress", "no_marker"),
        ("reflect_instruction", "no_marker"),
        ("reflect_instruction", "placeholder"),
        ("reflect_response", "empty"),
        ("reflect_response", "placeholder"),
    ]


def test_replies_are_complete_and_counted() -> None:
    for row in recording():
        assert row.keys() == {"step", "reads", "text", "finish_reason", "prompt_tokens", "completion_tokens"}
        assert row["finish_reason"] == "stop"
        assert row["completion_tokens"] == len(row["text"]) // 4
        assert row["prompt_tokens"] > sum(map(len, row["reads"].values())) // 4


def test_replies_come_in_the_shapes_of_real_teachers() -> None:
    texts = [r["text"] for r in recording()]
    usable = [t.output for t in intended().values() if t]

    assert sum("**New Instruction:**\n [New Instruction]" in t for t in texts) >= 3
    assert sum("\nNew Answer: " in t for t in texts) >= 2
    assert sum("3. [New Answer]" in t for t in texts) >= 10
    assert sum(not t.rstrip().endswith("[End]") for t in texts) >= 5
    assert sum(t.count("[Better Answer]") == 2 for t in texts) >= 3
    assert sum("]\n```\n" in t for t in texts) >= 3
    assert sum("]\n   " in t for t in texts) >= 3
    for word in ("Endurance", "End-to-end", "N/A"):
        assert any(word in answer and len(answer) > 200 for answer in usable)


def test_the_judge_has_a_reply_about_each_origin_and_each_pair_in_both_orders() -> None:
    judged = [
        (r["step"], *(Texts(**texts) for texts in (r["reads"], *r.get("beside", ())))) for r in recording("judge.jsonl")
    ]
    better = [(read, texts) for (step, read), texts in walk().items() if step == Step.REFLECT_RESPONSE and texts]
    pairs = [pair for pair in better if pair[0] in samples()]

    assert len(pairs) == 39
    assert len(judged) == len(set(judged)) == 118
    assert set(judged) == {
        *(("rate", origin) for origin in samples()),
        *(("compare", *pair) for pair in pairs),
        *(("compare", *reversed(pair)) for pair in pairs),
    }


def test_two_replies_of_the_judge_are_unusable() -> None:
    reasons = []
    for row in recording("judge.jsonl"):
        found = steps()[row["step"]].read(row["text"], [Texts(**row["reads"])])
        assert (found.reason is None) == bool(found.ratings)
        reasons += [found.reason.partition(":")[0]] if found.reason else []

    assert sorted(reasons) == ["no_number", "no_scores"]


def test_the_data_are_what_the_script_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("build_demo_data").build(tmp_path)

    said = capsys.readouterr().out
    assert "41 samples, 128 replies, 5 of them unusable" in said
    assert "118 replies of the judge" in said
    for name in ("samples.json", "replies.jsonl", "judge.jsonl"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def test_students_are_small() -> None:
    files = [f for name in STUDENTS for f in (DEMO / "students" / name).iterdir()]

    assert {f.name for f in files} == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert sum(f.stat().st_size for f in files) < 8_000_000


@pytest.mark.parametrize("name", STUDENTS)
def test_student_loads_without_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = DEMO / "students" / name
    transformers.logging.enable_propagation()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    finally:
        transformers.logging.disable_propagation()

    assert not caplog.records
    assert model.num_parameters() == STUDENTS[name]
    assert model.dtype == torch.bfloat16
    ids = tokenizer("A stored reply, é and 中.")["input_ids"]
    assert (ids[0], ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "A stored reply, é and 中."


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: texts as short as these gain nothing by a second, and lose much where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow  # the naive loop; test_demo.py looks at the same figures as the engine computes them
@pytest.mark.usefixtures("one_thread")
def test_students_have_learned_something_and_disagree() -> None:
    students = example("train_demo_students")
    variants = students.read_variants()
    small, large = (students.evaluate(DEMO / "students" / name, variants) for name in STUDENTS)

    for student in (small, large):
        assert all(student.median_ifd(kind) < 1 for kind in scored_kinds())
        assert student.rifd_below_1() > 0.3
        assert 5 <= sum(p in (Kind.REFLECT_RESPONSE, Kind.REFLECT_BOTH) for p in student.picks()) <= 30
    assert sum(a != b for a, b in zip(small.picks(), large.picks(), strict=True)) >= 5
