"""Build the demo's samples and its teachers' recorded replies from the texts that people wrote for them.

    python examples/build_demo_data.py      # demo_texts.txt -> recycledb/demo/samples.json, replies.jsonl and judge.jsonl

`demo_texts.txt` holds, for each sample, its texts and what a good teacher might say about it. This script puts these into
replies of the shapes in which real teachers write, well-formed or not. A sample begins with `=== name | c=… i=… a=… b=…`,
where the letters stand for the replies to compress, to reflect_instruction, and to reflect_response on the origin and on
the new instruction, and each names a shape below; what is not named is `plain`. A section begins with `--- title`.
"compress reply" and "instruction reply" give a whole reply that holds no usable text, and "draft" an answer that the
teacher thinks better of. "rating" gives the judge's whole reply about the origin, and "judgements" its replies about the
origin and the better answer, one a line: first with the origin shown first, then with the better answer shown first.

Invariant: the questions that arise from the samples when the replies are extracted are exactly those that have a reply.
The token counts are a fourth of the characters: nobody was asked and nobody was paid.
It refuses to invent: a missing section is an error, never an empty text.
"""

import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("demo_texts.txt")
DEMO = Path(__file__).parents[1] / "recycledb" / "demo"
PLACEHOLDERS = ("<noinput>", "No input.")
TWICE = "recursion"  # this sample is in the file a second time, so that there is something to find
PROMPT_CHARACTERS = {
    "compress": 700,
    "reflect_instruction": 1900,
    "reflect_response": 1100,
    "rate": 350,
    "compare": 650,
}


@dataclass(frozen=True)
class Written:
    """What was written for one sample: its sections by title, and the shape of each of its replies by letter."""

    name: str
    shapes: dict[str, str]
    sections: dict[str, str]

    def __getitem__(self, title: str) -> str:
        """Return a section's text; KeyError says which sample lacks it."""
        if title not in self.sections:
            raise KeyError(f"{self.name} lacks the section {title!r}")
        return self.sections[title]

    def sample(self) -> dict[str, str]:
        """Return the sample as it stands in the file."""
        return {
            "instruction": self["instruction"],
            "input": self.sections.get("input", ""),
            "output": self["output"],
        }


def read_written(path: Path = SOURCE) -> list[Written]:
    """Return what was written, in the order of the file."""
    return [_read_one(chunk) for chunk in f"\n{path.read_text(encoding='utf-8')}".split("\n=== ")[1:]]


def _read_one(chunk: str) -> Written:
    header, *parts = chunk.split("\n--- ")
    name, _, shapes = header.partition("|")
    sections = (part.partition("\n") for part in parts)
    return Written(
        name.strip(),
        dict(shape.split("=") for shape in shapes.split()),
        {title.strip(): body.strip("\n") for title, _, body in sections},
    )


# Shapes of a new instruction with its answer -------------------------------------------------------------------------


def _pair_plain(critique: str, instruction: str, answer: str) -> str:
    return f"1. {critique}\n\n2. [New Instruction] {instruction} [End]\n\n3. [New Answer] {answer} [End]"


def _pair_bold(critique: str, instruction: str, answer: str) -> str:
    return (
        f"1. **Why the instruction and the answer are not good:**\n{critique}\n\n"
        f"2. **New Instruction:**\n [New Instruction] {instruction} [End]\n\n"
        f"3. **New Answer:**\n [New Answer] {answer} [End]"
    )


def _pair_without_brackets(critique: str, instruction: str, answer: str) -> str:
    return f"{critique}\n\nNew Instruction: {instruction} [End]\n\nNew Answer: {answer} [End]"


def _pair_open(critique: str, instruction: str, answer: str) -> str:
    return f"1. {critique}\n\n2. [New Instruction] {instruction} [End]\n\n[New Answer]\n{answer}"


def _pair_numbered(critique: str, instruction: str, answer: str) -> str:
    return (
        f"### Analysis\n\n{critique}\n\n[New Instruction]\n{instruction}\n[End]\n\n"
        f"3. Here is a detailed answer to the new instruction.\n\n3. [New Answer]\n{answer}\n[End]"
    )


def _pair_indented(critique: str, instruction: str, answer: str) -> str:
    return (
        f"1. {critique}\n\n2. [New Instruction]\n{_indent(instruction)}\n   [End]\n\n"
        f"3. [New Answer]\n{_indent(answer)}\n   [End]"
    )


def _pair_fenced(critique: str, instruction: str, answer: str) -> str:
    return f"1. {critique}\n\n2. [New Instruction] {instruction} [End]\n\n3. [New Answer]\n```\n{answer}\n```\n[End]"


PAIRS: dict[str, Callable[[str, str, str], str]] = {
    "plain": _pair_plain,
    "bold": _pair_bold,
    "bracketless": _pair_without_brackets,
    "open": _pair_open,
    "numbered": _pair_numbered,
    "indented": _pair_indented,
    "fenced": _pair_fenced,
}

# Shapes of one text: an instruction after compress, an answer after reflect_response ----------------------------------


def _one_plain(marker: str, text: str) -> str:
    return f"[{marker}] {text} [End]"


def _one_bold(marker: str, text: str) -> str:
    return f"2. **{marker}:**\n [{marker}] {text} [End]"


def _one_without_brackets(marker: str, text: str) -> str:
    return f"{marker}: {text} [End]"


def _one_open(marker: str, text: str) -> str:
    return f"[{marker}]\n{text}"


def _one_numbered(marker: str, text: str) -> str:
    return f"2. [{marker}]\n{text}\n[End]"


def _one_indented(marker: str, text: str) -> str:
    return f"2. [{marker}]\n{_indent(text)}\n   [End]"


def _one_fenced(marker: str, text: str) -> str:
    return f"[{marker}]\n```\n{text}\n```\n[End]"


def _one_empty(marker: str, text: str) -> str:
    return f"2. [{marker}] [End]"


def _one_not_available(marker: str, text: str) -> str:
    return f"[{marker}] N/A [End]"


ONES: dict[str, Callable[[str, str], str]] = {
    "plain": _one_plain,
    "bold": _one_bold,
    "bracketless": _one_without_brackets,
    "open": _one_open,
    "numbered": _one_numbered,
    "indented": _one_indented,
    "fenced": _one_fenced,
    "empty": _one_empty,
    "na": _one_not_available,
}
UNUSABLE = ("empty", "na")


def _indent(text: str) -> str:
    return textwrap.indent(text, "   ")


# Questions and replies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A step, the texts that it reads, the reply, and the texts that the reply was written to give (None: none)."""

    step: str
    reads: dict[str, str]
    text: str
    gives: dict[str, str] | None
    beside: dict[str, str] | None = None  # the texts of the second variant shown

    def line(self) -> str:
        """Return the reply as a line of the recording."""
        read = sum(len(text) for texts in (self.reads, self.beside or {}) for text in texts.values())
        row: dict[str, Any] = {
            "step": self.step,
            "reads": self.reads,
            **({"beside": [self.beside]} if self.beside else {}),
            "text": self.text,
            "finish_reason": "stop",
            "prompt_tokens": (read + PROMPT_CHARACTERS[self.step]) // 4,
            "completion_tokens": len(self.text) // 4,
        }
        return json.dumps(row, ensure_ascii=False)


def ask_all(written: Written) -> Iterator[Question]:
    """Yield every question that arises about a sample, with its reply, in the order in which they arise."""
    origin = _origin(written)
    read: dict[str, str] | None = origin
    if origin["input"]:
        compressed = _compress(written, origin)
        read = compressed.gives
        yield compressed
    yield _respond(written, "a", origin, "answer")
    if read is not None:
        renewed = _renew(written, read)
        yield renewed
        if renewed.gives is not None:
            yield _respond(written, "b", renewed.gives, "new answer")


def judge_all(written: Written) -> Iterator[Question]:
    """Yield the judge's questions about a sample: a rating of the origin, and whether the better answer is better, in both orders."""
    origin = _origin(written)
    yield Question("rate", origin, written["rating"], None)
    better = _respond(written, "a", origin, "answer").gives
    if better is not None:
        one, other = written["judgements"].splitlines()
        yield Question("compare", origin, one, None, beside=better)
        yield Question("compare", better, other, None, beside=origin)


def _origin(written: Written) -> dict[str, str]:
    """Return the sample as it is stored: with an empty input where a placeholder stands."""
    sample = written.sample()
    return {**sample, "input": "" if sample["input"] in PLACEHOLDERS else sample["input"]}


def _compress(written: Written, origin: dict[str, str]) -> Question:
    if "compress reply" in written.sections:
        return Question("compress", origin, written["compress reply"], None)
    gives = {"instruction": written["compressed"], "input": "", "output": origin["output"]}
    text = ONES[written.shapes.get("c", "plain")]("Instruction", gives["instruction"])
    return Question("compress", origin, f"Here is one instruction that stands by itself.\n\n{text}", gives)


def _renew(written: Written, read: dict[str, str]) -> Question:
    if "instruction reply" in written.sections:
        return Question("reflect_instruction", read, written["instruction reply"], None)
    gives = {"instruction": written["new instruction"], "input": "", "output": written["new answer"]}
    shape = PAIRS[written.shapes.get("i", "plain")]
    text = shape(written["critique"], gives["instruction"], gives["output"])
    return Question("reflect_instruction", read, text, gives)


def _respond(written: Written, letter: str, read: dict[str, str], what: str) -> Question:
    critique = written[f"critique of {what}"]
    shape = written.shapes.get(letter, "plain")
    if shape in UNUSABLE:
        return Question("reflect_response", read, f"1. {critique}\n\n{ONES[shape]('Better Answer', '')}", None)
    better = written[f"better {what}"]
    if shape == "two":
        text = _second_thoughts(critique, written["draft"], better)
    else:
        text = f"1. {critique}\n\n{ONES[shape]('Better Answer', better)}"
    return Question("reflect_response", read, text, {**read, "output": better})


def _second_thoughts(critique: str, draft: str, better: str) -> str:
    return (
        f"1. {critique}\n\n2. [Better Answer] {draft} [End]\n\n"
        f"This does not yet meet the points above; here is the complete version.\n\n[Better Answer] {better} [End]"
    )


def build(folder: Path = DEMO) -> None:
    """Write samples.json, replies.jsonl and judge.jsonl into `folder`."""
    written = read_written()
    samples = [w.sample() for w in written]
    samples.append(next(w.sample() for w in written if w.name == TWICE))
    questions = [question for w in written for question in ask_all(w)]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(samples, ensure_ascii=False, indent=1)
    (folder / "samples.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    judged = [question for w in written for question in judge_all(w)]
    for name, replies in (("replies.jsonl", questions), ("judge.jsonl", judged)):
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{question.line()}\n" for question in replies)
    unusable = sum(question.gives is None for question in questions)
    print(f"{len(samples)} samples, {len(questions)} replies, {unusable} of them unusable, in {folder}")
    print(f"{len(judged)} replies of the judge")


if __name__ == "__main__":
    build()
