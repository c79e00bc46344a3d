"""Extraction: the shapes in which teachers write, what must not be taken for an answer, and texts that come back unharmed."""

import sys

import forks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recycledb.methods import Extracted
from recycledb.methods.reflection import Step, extract
from recycledb.schema import Texts

READ = Texts("Name a river.", "", "The Rhine.")
COMPRESS, INSTRUCT, RESPOND = Step.COMPRESS, Step.REFLECT_INSTRUCTION, Step.REFLECT_RESPONSE


def better(text: str, read: Texts = READ) -> str:
    found = extract(RESPOND, text, read)
    assert found.texts is not None, found.reason
    assert found.texts[:2] == read[:2]
    return found.texts.output


def pair(text: str) -> tuple[str, str]:
    found = extract(INSTRUCT, text, READ)
    assert found.texts is not None, found.reason
    assert found.texts.input == ""
    return found.texts.instruction, found.texts.output


def reason(step: Step, text: str) -> str:
    found = extract(step, text, READ)
    assert found.texts is None, found.texts
    assert found.reason is not None and "\n" not in found.reason
    return found.reason.partition(":")[0]


def test_each_step_gives_the_texts_that_it_made() -> None:
    read = Texts("Sort these.", "b, a", "a, b")
    assert extract(COMPRESS, "[Instruction]\nSort b and a.\n[End]", read) == Extracted(
        Texts("Sort b and a.", "", "a, b")
    )
    text = "1. Why.\n[New Instruction]\nI\n[End]\n[New Answer]\nA\n[End]"
    assert extract(INSTRUCT, text, read) == Extracted(Texts("I", "", "A"))
    assert extract(RESPOND, "[Better Answer]\nB\n[End]", read) == Extracted(Texts("Sort these.", "b, a", "B"))


# Shapes of replies with a new instruction I and a new answer A, both of two lines.
PAIRS = {
    "as asked": "1. Why.\n\n[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n[End]",
    "on the marker's line": "[New Instruction] I\nj [End]\n\n[New Answer] A\nb [End]",
    "last end missing": "[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb",
    "both ends missing": "[New Instruction]\nI\nj\n\n[New Answer]\nA\nb\n",
    "bold headings": "**1. Analysis**\nWhy.\n\n**2. New Instruction:**\nI\nj\n\n**3. New Answer:**\nA\nb",
    "heading before the marker": (
        "2. **New Instruction:**\n [New Instruction] I\nj\n[End]\n\n3. **New Answer:**\n [New Answer] A\nb\n[End]"
    ),
    "heading before the marker, no ends": (
        "2. **New Instruction:**\n[New Instruction]\nI\nj\n\n3. **New Answer:**\n[New Answer]\nA\nb"
    ),
    "number before the answer": "[New Instruction]\nI\nj\n[End]\n3. [New Answer]\nA\nb\n[End]",
    "number on a line of its own": "[New Instruction]\nI\nj\n\n3.\n[New Answer]\nA\nb",
    "rule between": "[New Instruction]\nI\nj\n\n---\n\n[New Answer]\nA\nb",
    "another heading between": "[New Instruction]\nI\nj\n\n**3. The new answer to it:**\n[New Answer]\nA\nb",
    "no brackets": "Why.\n\nNew Instruction: I\nj\n\nNew Answer: A\nb\n",
    "brackets, then none": "[New Instruction]\nI\nj\n[End]\nNew Answer:\nA\nb\n",
    "headings without colons": "### New Instruction\nI\nj\n\n### New Answer\n\nA\nb",
    "bold headings, colon outside": "**New Instruction**: I\nj\n\n**New Answer**: A\nb",
    "numbered bold": "2. **[New Instruction]**\nI\nj\n**[End]**\n3. **[New Answer]**\nA\nb\n**[End]**",
    "bold ends on the line": "**[New Instruction]** I\nj **[End]**\n**[New Answer]** A\nb **[End]**",
    "colons": "[New Instruction]: I\nj\n[End]\n**[New Answer]:** A\nb\n[End]",
    "case": "[NEW INSTRUCTION]\nI\nj\n[END]\n[new answer]\nA\nb\n[end]",
    "named ends": "[New Instruction]\nI\nj\n[End of Instruction]\n[New Answer]\nA\nb\n[End of New Answer]",
    "slashed ends": "[New Instruction]\nI\nj\n[/New Instruction]\n[New Answer]\nA\nb\n[/New Answer]",
    "list, indented": "2. [New Instruction] I\n   j\n[End]\n\n3. [New Answer] A\n   b\n[End]",
    "list, indented below": "2. [New Instruction]\n   I\n   j\n   [End]\n3. [New Answer]\n   A\n   b\n   [End]",
    "bulleted": "- [New Instruction] I\n  j\n- [New Answer] A\n  b\n",
    "quoted": "> [New Instruction]\nI\nj\n[End]\n> [New Answer]\nA\nb\n[End]",
    "fenced": "[New Instruction]\nI\nj\n[End]\n[New Answer]\n```\nA\nb\n```\n[End]",
    "fenced as text": "[New Instruction]\n```text\nI\nj\n```\n[End]\n[New Answer]\n```markdown\nA\nb\n```",
    "the whole reply fenced": "```\n[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n```",
    "escaped": "\\[New Instruction\\]\nI\nj\n\\[End\\]\n\\[New Answer\\]\nA\nb\n\\[End\\]",
    "wide brackets": "【New Instruction】\nI\nj\n【End】\n【New Answer】\nA\nb\n【End】",
    "spaces and underlines": "[ New Instruction ]\nI\nj\n[ End ]\n[New_Answer]\nA\nb\n[ End ]",
    "windows": "[New Instruction]\r\nI\r\nj\r\n[End]\r\n[New Answer]\r\nA\r\nb\r\n[End]\r\n",
    "announced within a line": "Here it is: [New Instruction] I\nj [End] And this is its answer: [New Answer] A\nb [End]",
    "spoken of before": "I shall write a [New Instruction] and a [New Answer].\n[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n[End]",
    "label repeated": "[New Instruction]\n**New Instruction:** I\nj\n[End]\n[New Answer]\nNew Answer: A\nb\n[End]",
    "thinking": "<think>\n[New Instruction] no [End]\n[New Answer] no\n</think>\n[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n[End]",
    "thinking, no line between": "<think>[New Answer] no [End]</think>[New Instruction] I\nj\n[End]\n[New Answer] A\nb\n[End]",
    "thinking, opened in the prompt": "Hm. [New Instruction] no\n</think>\n\n[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n[End]",
    "two drafts": (
        "[New Instruction]\nx\n[End]\n[New Answer]\ny\n[End]\nBetter:\n[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n[End]"
    ),
    "an outline first": (
        "[New Instruction] ... [End]\n[New Answer] ... [End]\n\n[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n[End]"
    ),
    "words after the end": "[New Instruction]\nI\nj\n[End]\n[New Answer]\nA\nb\n[End]\n\nI hope that this helps. [End]",
}


@pytest.mark.parametrize("shape", PAIRS)
def test_a_pair_is_found_in_every_shape(shape: str) -> None:
    assert pair(PAIRS[shape]) == ("I\nj", "A\nb")


ANSWERS = {
    "words that begin with End": (
        "[Better Answer] Endurance, End-to-end, [Endnote].\n[End]",
        "Endurance, End-to-end, [Endnote].",
    ),
    "placeholders within": ("[Better Answer]\nWrite N/A, or your answer.\n[End]", "Write N/A, or your answer."),
    "two, the last complete": ("[Better Answer] one [End]\n[Better Answer] two [End]\n[Better Answer] three", "two"),
    "two, none complete": ("[Better Answer] one\n[Better Answer] two", "two"),
    "used as a closing tag": ("[Better Answer]\none\n[Better Answer]", "one"),
    "a node of a diagram": ("[Better Answer]\nA --> C[End]\nC --> D\n[End]", "A --> C[End]\nC --> D"),
    "a node, the end missing": ("[Better Answer]\nA --> C[End]\nC --> D", "A --> C[End]\nC --> D"),
    "the last element": ("[Better Answer]\nx = a[end]\ny = 1", "x = a[end]\ny = 1"),
    "glued to the last word": ("[Better Answer] one[End]", "one"),
    "code that ends with end": ("[Better Answer]\ndef f\n  1\nend\n[End]", "def f\n  1\nend"),
    "code on the marker's line": ("[Better Answer] def f():\n    return 1\n[End]", "def f():\n    return 1"),
    "code in a list": ("2. [Better Answer] def f():\n    return 1\n[End]", "def f():\n    return 1"),
    "code in a named fence": ("[Better Answer]\n```python\nx = 1\n```\n[End]", "```python\nx = 1\n```"),
    "text and fences": ("[Better Answer]\n```\na\n```\nb\n```\nc\n```\n[End]", "```\na\n```\nb\n```\nc\n```"),
    "a fence round text and end": ("```\n[Better Answer]\none\n[End]\n```", "one"),
    "a fence from before the end": ("[Better Answer]\n```\none\n[End]\n```", "one"),
    "bold text": ("[Better Answer] **One** and two.\n[End]", "**One** and two."),
    "bold text, glued": ("[Better Answer]**One** and two.\n[End]", "**One** and two."),
    "all bold": ("**[Better Answer] one [End]**", "one"),
    "tags that are spoken of": (
        "[Better Answer] Close it with </think>, then go on. [End]",
        "Close it with </think>, then go on.",
    ),
    "remarks on the same line": ("[Better Answer] It is so. [End] I hope this helps.", "It is so."),
    "a mention of the end": ("[Better Answer] Write [End] last.\nThen stop.\n[End]", "Write [End] last.\nThen stop."),
    "blank lines": ("[Better Answer]\n\n\none\n\n\ntwo\n\n[End]", "one\n\n\ntwo"),
    "other brackets": ("[Better Answer] See [1] and [New Answer]. [End]", "See [1] and [New Answer]."),
}


@pytest.mark.parametrize("shape", ANSWERS)
def test_an_answer_is_read_whole_and_alone(shape: str) -> None:
    text, expected = ANSWERS[shape]
    assert better(text) == expected


def test_a_fence_stays_where_the_original_has_one() -> None:
    text = "[Better Answer]\n```\nls -a\n```\n[End]"
    assert better(text) == "ls -a"
    assert better(text, Texts("List files.", "", "```\nls\n```")) == "```\nls -a\n```"


PLACEHOLDERS = ["N/A", "n/a.", "[Your answer here]", "your answer", "...", "…", "<better answer>", "**N/A**"]


@pytest.mark.parametrize("placeholder", [*PLACEHOLDERS, "Insert your better answer here"])
def test_a_placeholder_is_no_answer(placeholder: str) -> None:
    assert reason(RESPOND, f"[Better Answer]\n{placeholder}\n[End]") == "placeholder"
    assert reason(INSTRUCT, f"[New Instruction]\nI\n[End]\n[New Answer]\n{placeholder}\n[End]") == "placeholder"


@pytest.mark.parametrize(
    "answer", ["None", "No answer is known.", "-1", "Nothing.", "The answer is 42.", "NA is sodium."]
)
def test_a_short_answer_is_an_answer(answer: str) -> None:
    assert better(f"[Better Answer] {answer} [End]") == answer


def test_the_original_is_never_passed_off_as_the_teachers() -> None:
    assert reason(RESPOND, "[Better Answer]\nThe  Rhine.\n[End]") == "unchanged"
    assert reason(INSTRUCT, "[New Instruction]\nName a river.\n[End]\n[New Answer]\nThe Elbe.\n[End]") == "unchanged"
    assert reason(COMPRESS, "[Instruction] Name a river. [End]") == "unchanged"


def test_what_cannot_be_read_has_a_reason() -> None:
    assert reason(RESPOND, "I am sorry, but I cannot help with that.") == "no_marker"
    assert reason(RESPOND, "") == "no_marker"
    assert reason(RESPOND, "The better answer would name the Rhine's length.") == "no_marker"
    assert reason(RESPOND, "[Better Answer]\n[End]") == "empty"
    assert reason(INSTRUCT, "[New Instruction]\nI\n[End]") == "no_marker"
    assert reason(INSTRUCT, "[New Answer]\nA\n[End]\n[New Instruction]\nI\n[End]") == "no_marker"
    assert reason(INSTRUCT, "[New Instruction]\n[End]\n[New Answer]\nA\n[End]") == "empty"
    assert reason(RESPOND, "<think>[Better Answer] one [End]") == "thinking"
    assert reason(COMPRESS, "[Better Answer] one [End]") == "no_marker"


# ---------------------------------------------------------------- any text, any shape

TRICKY = """Endurance End-to-end end End N/A answer instruction [1] a[i] {x} **bold** *it* `code` # 1. - | \\ <b> think </p> « é
    漢字 😀 \t def f(): return None; x=[0] --- ... … ( ] ["""
WORDS = st.sampled_from(TRICKY.split())
LINES = st.lists(
    WORDS | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=8), max_size=6
)
INDENTS = st.sampled_from(["", "", "", "  ", "    "])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A text of some lines that is not a placeholder, not fenced and not in need of stripping."""
    lines = [draw(INDENTS) + " ".join(line) for line in draw(st.lists(LINES, max_size=5))]
    first = draw(st.sampled_from(["Rivers", "What is it", "The answer, at length, is", "def f():", "12"]))
    last = draw(st.sampled_from(["so.", "end", "Endurance", "42", "fin?"]))
    return "\n".join([f"{first} {draw(st.integers(0, 999))}", *lines, f"{last} {draw(st.integers(0, 999))}"])


BODY = texts().filter(
    lambda text: not any(mark in text.lower() for mark in ("instruction:", "answer:", "[end]", "**["))
)
SINGLE = [
    "[Better Answer]\n{}\n[End]",
    "[Better Answer] {} [End]",
    "1. Poor.\n\n2. **Better Answer:**\n[Better Answer]\n{}\n[End]\n",
    "**Better Answer:**\n{}",
    "Better Answer: {}",
    "### Better Answer\n\n{}\n\n**[End]**",
    "**[Better Answer]**\n{}\n**[End]**\n\nDone.",
    "[BETTER ANSWER]:\n{}\n[END OF ANSWER]",
    "<think>[Better Answer] no [End]</think>[Better Answer]\n{}\n[End]",
    "[Better Answer] no [End]\n[Better Answer]\n{}\n[End]",
    "[Better Answer]\n{}",
]
DOUBLE = [
    "[New Instruction]\n{}\n[End]\n[New Answer]\n{}\n[End]",
    "[New Instruction] {} [End] [New Answer] {} [End]",
    "1. Why.\n2. **New Instruction:**\n[New Instruction]\n{}\n[End]\n\n3. **New Answer:**\n[New Answer]\n{}",
    "[New Instruction]\n{}\n\n[New Answer]\n{}\n",
    "New Instruction:\n{}\n\nNew Answer:\n{}\n",
    "**[New Instruction]**\n{}\n**[End]**\n**[New Answer]**\n{}\n**[End]**",
]


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(body=BODY, shape=st.sampled_from(SINGLE))
def test_any_answer_comes_back_as_it_was_written(body: str, shape: str) -> None:
    assert better(shape.replace("{}", body)) == body.strip()


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(instruction=BODY, answer=BODY, shape=st.sampled_from(DOUBLE))
def test_any_pair_comes_back_as_it_was_written(instruction: str, answer: str, shape: str) -> None:
    first, second, third = shape.split("{}")
    assert pair(first + instruction + second + answer + third) == (instruction.strip(), answer.strip())


@settings(max_examples=300, deadline=None)
@given(step=st.sampled_from(Step), text=st.text() | texts())
def test_whatever_is_read_has_texts_or_a_reason_and_reads_the_same_again(step: Step, text: str) -> None:
    found = extract(step, text, READ)
    assert (found.texts is None) is (found.reason is not None)
    assert extract(step, text, READ) == found
    if found.texts is not None and step is RESPOND:  # what was unwrapped has no wrapping left
        assert better(f"[Better Answer]\n{found.texts.output}\n[End]") == found.texts.output


ADVERSARIAL = [
    "[", "[[", "]", "[Better Answer]", "[Better Answer] x [End] ", "[End]", "x[End]\n", "[Better Answer\n", " ", "\n", " \n",
    "*", "**\n", "#", "```\n", "~~~x\n", "<think>", "</think>", "1. ", "1.\n", "> ", "\\[", "Better Answer: ",
    "Better Answer:\n", "**Better Answer:**\n", "\t", "- ", "[New Instruction]\n[New Answer]\n", "[New Answer] x [End]\n",
]  # fmt: skip


READING = """
import sys
from recycledb.methods.reflection import Step, extract
from recycledb.schema import Texts
piece, length = sys.argv[1], int(sys.argv[2])
for step, opening in (
    (Step.REFLECT_RESPONSE, "[Better Answer]\\n"),
    (Step.REFLECT_INSTRUCTION, "[New Instruction]\\nI\\n[New Answer]\\n"),
):
    extract(step, opening + piece * (length // len(piece)), Texts("Name a river.", "", "The Rhine."))
"""


def is_read(piece: str, length: int) -> bool:
    """Return whether a text of `piece`s was read; forks.TimeoutExpired from its end where that takes more than linear time."""
    return forks.run([sys.executable, "-c", READING, piece, str(length)], timeout=120).returncode == 0


# Less than a second a megabyte; what is not linear takes many minutes, so that the process is killed and the test fails.
@pytest.mark.long
@pytest.mark.parametrize(
    "piece", ["[Better Answer]", "[New Instruction]\n[New Answer]\n", "x[End]\n", " \n", "".join(ADVERSARIAL)]
)
def test_long_texts_of_markers_are_read(piece: str) -> None:
    assert is_read(piece, 1_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_a_megabyte_of_anything_is_read(piece: str) -> None:
    assert is_read(piece, 1_000_000)
