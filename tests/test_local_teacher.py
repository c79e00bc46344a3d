"""The local teacher: a tiny chat model with random weights, alone and in batches, to its end or its limit."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from late import torch
from tiny_students import config as model_config
from tiny_students import tokenizer, transformers

from recycledb.config import TeacherConfig
from recycledb.errors import TeacherError
from recycledb.methods.reflection import Step
from recycledb.reflection.teachers import Question, Reply, open_teacher
from recycledb.reflection.teachers.contract import storable
from recycledb.schema import ReplyStatus, Texts

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
TEXTS = ["Name a river.", "Give three tips. " * 9, "One", "def area(radius):", "The quick brown fox " * 3, "x"]


def save_teacher(folder: Path, template: str | None = CHATML, ends: Sequence[int] = (1,)) -> Path:
    """Write a chat model of two layers; `ends` are the tokens that end an answer."""
    words = tokenizer(bos=True)
    words.chat_template = template
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(model_config("llama", len(words)))
    model.generation_config.eos_token_id = list(ends)
    # As published chat models have it: settings for sampling that must not disturb temperature 0.
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"), ends=range(1, 400, 18))


def config(folder: Path, **settings: Any) -> TeacherConfig:
    settings = {"params": {"max_tokens": 24}, "device": "cpu", **settings}
    return TeacherConfig(name="tiny", provider="transformers", model=str(folder), **settings)


def question(text: str, system: str | None = None) -> Question:
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Question(text, Step.COMPRESS, messages, (Texts(text, "", ""),))


async def ask_all(settings: TeacherConfig, questions: Sequence[Question]) -> list[Reply]:
    teacher = open_teacher(settings)

    async def ask(one: Question) -> Reply:
        with await teacher.admit(teacher.estimate(one.messages)) as ticket:
            return await teacher.ask(one, ticket)

    try:
        return await asyncio.gather(*(ask(one) for one in questions))
    finally:
        await teacher.close()


def naive(folder: Path, texts: Sequence[str], most: int) -> list[tuple[str, int, bool]]:
    """Return each answer of the likeliest tokens one by one, their number, and whether they came to an end: the oracle."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ends = model.generation_config.eos_token_id
    answers = []
    for text in texts:
        ids = words(f"<|user|>\n{text}\n<|assistant|>\n", add_special_tokens=False)["input_ids"]
        answer: list[int] = []
        while len(answer) < most and not (answer and answer[-1] in ends):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits
            answer.append(int(logits[0, -1].argmax()))
        ended = answer[-1] in ends
        answers.append((words.decode(answer[: len(answer) - ended], skip_special_tokens=True), len(answer), ended))
    return answers


@pytest.fixture(scope="module")
def expected(model: Path) -> list[tuple[str, int, bool]]:
    answers = naive(model, TEXTS, 24)
    assert {ended for _, _, ended in answers} == {True, False}  # else half of it would go untested
    return answers


@pytest.mark.long
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_batch_answers_as_one_at_a_time(model: Path, expected: list[tuple[str, int, bool]], batch: int) -> None:
    replies = asyncio.run(ask_all(config(model, concurrency=batch), [question(text) for text in TEXTS]))
    for (text, tokens, ended), reply in zip(expected, replies, strict=True):
        assert (reply.text, reply.completion_tokens) == (storable(text), tokens)
        assert reply.finish_reason == ("stop" if ended else "length")
        assert (reply.served_model, reply.cost_usd) == (str(model), None)


def test_an_answer_without_end_is_cut_off(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path, ends=[1])
    (reply,) = asyncio.run(ask_all(config(folder, params={"max_tokens": 3}), [question("Name a river.")]))
    assert naive(folder, ["Name a river."], 3) == [(reply.text, 3, False)]
    assert (reply.status, reply.kind, reply.completion_tokens) == (ReplyStatus.FAILED, "cut_off", 3)


def test_a_prompt_that_does_not_fit_fails_alone(model: Path) -> None:
    long, short = asyncio.run(ask_all(config(model), [question("long " * 400), question("One")]))
    assert (long.status, long.kind) == (ReplyStatus.FAILED, "too_long")
    assert "exceed the model's 512" in (long.error or "")
    assert short.kind != "too_long"


def test_a_template_without_a_system_role_gets_one_message(tmp_path: Path) -> None:
    folder = save_teacher(tmp_path, NO_SYSTEM, ends=range(1, 400, 12))
    joined, plain = asyncio.run(ask_all(config(folder), [question("One.", "Be brief."), question("Be brief.\n\nOne.")]))
    assert (joined.text, joined.prompt_tokens) == (plain.text, plain.prompt_tokens)


def test_sampling_answers_too(model: Path) -> None:
    settings = config(model, params={"max_tokens": 8, "temperature": 0.7, "top_k": 5})
    (reply,) = asyncio.run(ask_all(settings, [question("One")]))
    assert reply.completion_tokens


def test_a_closed_teacher_leaves_nobody_waiting(model: Path) -> None:
    async def run() -> list[Reply | BaseException]:
        teacher = open_teacher(config(model, concurrency=1, params={"max_tokens": 400}))
        asked = [asyncio.create_task(teacher.ask(question(text))) for text in TEXTS[:3]]
        await asyncio.sleep(0.05)
        await teacher.close()
        return list(await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30))

    for reply in asyncio.run(run()):
        assert isinstance(reply, Reply) or (isinstance(reply, TeacherError) and "was closed" in str(reply))


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="not found: give a folder") as caught:
        open_teacher(config(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
    with pytest.raises(TeacherError, match="has no chat template"):
        open_teacher(config(save_teacher(tmp_path / "base", template=None)))
