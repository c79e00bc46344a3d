"""Prompts: the shipped wording, a user's own file, and texts that cannot break out of their place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recycledb.errors import ConfigError
from recycledb.methods import steps
from recycledb.methods.reflection import Step
from recycledb.reflection.prompts import load, parse, render
from recycledb.schema import Texts

READ = Texts("Name a river.", "in Europe", "The Rhine.")
OWN = "Say [Better Answer] … [End] of {instruction}{{#input}} with {input}{{/input}}: {output}"


def user(step: Step, text: str, read: Texts) -> str:
    (message,) = render(parse(steps()[step], text, "test"), (read,))
    assert message["role"] == "user"
    return message["content"]


@pytest.mark.parametrize("step", Step)
def test_the_shipped_prompts_ask_for_the_markers_and_hold_the_texts(step: Step) -> None:
    prompt = load(steps()[step])
    (message,) = render(prompt, (READ,))
    assert prompt.source == f"recycledb:{step}"
    for marker in steps()[step].markers:
        assert marker in message["content"]
    assert "<instruction>\nName a river.\n</instruction>" in message["content"]
    assert "<input>\nin Europe\n</input>" in message["content"]
    assert ("<answer>\nThe Rhine.\n</answer>" in message["content"]) is (step is not Step.COMPRESS)
    assert "{" not in message["content"] and "\n\n\n" not in message["content"]


@pytest.mark.parametrize("step", [Step.REFLECT_INSTRUCTION, Step.REFLECT_RESPONSE])
def test_without_an_input_nothing_speaks_of_one(step: Step) -> None:
    (message,) = render(load(steps()[step]), (READ._replace(input=""),))
    assert "input" not in message["content"]
    assert "\n\n\n" not in message["content"]


@pytest.mark.parametrize(
    ("step", "asked"),
    [
        (
            Step.REFLECT_INSTRUCTION,
            "complexity detail knowledge ambiguity reasoning helpfulness relevance accuracy led harder alone",
        ),
        (Step.REFLECT_RESPONSE, "helpfulness relevance accuracy detail complete"),
        (Step.COMPRESS, "self-contained together"),
    ],
)
def test_the_shipped_prompts_ask_what_the_method_asks(step: Step, asked: str) -> None:
    text = load(steps()[step]).text.lower()
    assert [word for word in asked.split() if word not in text] == []


def test_a_prompt_is_known_by_its_step_and_wording(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(OWN, encoding="utf-8")
    mine = load(steps()[Step.REFLECT_RESPONSE], path)
    assert mine.source == str(path)
    path.write_bytes(b"\xef\xbb\xbf" + OWN.encode())
    assert (
        load(steps()[Step.REFLECT_RESPONSE], path).prompt_id == mine.prompt_id
    )  # a mark of the editor, not of the wording
    path.write_text(OWN + ".", encoding="utf-8")
    assert load(steps()[Step.REFLECT_RESPONSE], path).prompt_id != mine.prompt_id
    ids = {load(steps()[step]).prompt_id for step in Step} | {mine.prompt_id}
    assert len(ids) == 4 and {len(one) for one in ids} == {12}


def test_messages_are_divided_by_roles() -> None:
    text = f"<<system>>\nBe strict.\n\n<<user>>\n{OWN}\n"
    assert render(parse(steps()[Step.REFLECT_RESPONSE], text, "t"), (Texts("I", "", "O"),)) == [
        {"role": "system", "content": "Be strict."},
        {"role": "user", "content": "Say [Better Answer] … [End] of I: O"},
    ]
    before = parse(steps()[Step.REFLECT_RESPONSE], f"{OWN}\n<<system>>\nBe strict.", "t")
    assert [role for role, _ in before.messages] == ["user", "system"]


def test_the_input_is_left_out_with_its_surroundings() -> None:
    assert (
        user(Step.REFLECT_RESPONSE, OWN, READ)
        == "Say [Better Answer] … [End] of Name a river. with in Europe: The Rhine."
    )
    assert (
        user(Step.REFLECT_RESPONSE, OWN, READ._replace(input=""))
        == "Say [Better Answer] … [End] of Name a river.: The Rhine."
    )


TRICKY = st.text() | st.sampled_from(
    ["{output}", "{{#input}}", "{{/input}}", "<<system>>", "\n<<user>>\n", "{instruction}", "\\1", "{0}"]
)


@given(instruction=TRICKY, output=TRICKY, context=TRICKY)
def test_texts_are_put_in_literally(instruction: str, output: str, context: str) -> None:
    text = "A[Better Answer]B[End]C{instruction}D{{#input}}{input}{{/input}}E{output}F"
    content = user(Step.REFLECT_RESPONSE, text, Texts(instruction, context, output))
    assert content == f"A[Better Answer]B[End]C{instruction}D{context}E{output}F"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OWN.replace("[End]", "[Stop]"), r"does not contain \[End\]"),
        (OWN.replace("[Better Answer]", ""), r"does not contain \[Better Answer\]"),
        (
            OWN.replace("{output}", "{answer}"),
            r"unknown placeholder \{answer\}; use \{instruction\}, \{input\}, \{output\}",
        ),
        (OWN.replace("{output}", ""), r"has no \{output\}"),
        (OWN.replace("{input}", ""), r"has no \{input\}"),
        (OWN.replace("{{/input}}", ""), "not closed"),
        (OWN.replace("{{#input}}", ""), "misplaced"),
        (OWN.replace("{{#input}}", "{{#output}}"), "misplaced or unknown"),
        (f"<<system>>\n{OWN}", "no <<user>> message"),
    ],
)
def test_a_prompt_that_could_not_work_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        load(steps()[Step.REFLECT_RESPONSE], path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(steps()[Step.COMPRESS], tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(steps()[Step.COMPRESS], tmp_path)
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 1\)"):
        load(steps()[Step.COMPRESS], tmp_path / "latin.txt")
