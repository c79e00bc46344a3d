"""Prompts: the wording of a teacher step, in a file that a user can replace, and its rendering to chat messages.

A prompt file is plain text:

- A line `<<system>>` or `<<user>>` begins a message; without such a line the whole file is the user message.
- `{instruction}`, `{input}` and `{output}` are replaced by the texts of the variant that is asked about. If a step shows several
  variants, `{instruction_2}`, `{input_2}`, `{output_2}` are those of the second, and so on.
- In the prompts of measures and judgings also: `{question}` is the instruction, followed by a line break and the input if there is one,
  `{answer}` the output; `{answer_1}`, `{question_2}`, `{answer_2}` and so on; `{reference}` is the output of the second variant.
- `{context}` is replaced by what comes before the question: system prompt and earlier turns. Without it in the prompt, the context is
  shown in a block of its own before the paragraph that has `{instruction}` (`recycledb.methods.context`).
- `{{#input}} … {{/input}}` is omitted if the variant has no input, `{{#context}} … {{/context}}` if the sample has no context. A section
  marker alone on its line is removed with its newline.

Invariant: a prompt's id is the hash of its step and its text as read, so an edited file is a new prompt and makes new
rows beside the old ones. Texts are inserted literally and in one pass, so braces or markers in a sample are never treated
as part of the prompt.
Prompts that cannot work are rejected: without a text that the step needs, or without the markers that its extraction
looks for. There is no model-specific wording here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recycledb.errors import ConfigError
from recycledb.methods import TeacherStep, context
from recycledb.schema import IDENTITY_LENGTH, Texts, content_id

_ROLE = re.compile(r"^<<(system|user)>>[ \t]*\n?", re.MULTILINE)
_SECTION_MARK = re.compile(r"^\{\{([#/])(\w+)\}\}[ \t]*\n|\{\{([#/])(\w+)\}\}", re.MULTILINE)
_SECTIONS = ("input", context.NAME)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True, slots=True)
class PromptText:
    """A step's prompt: its text as read, its source (file or method), and its messages as (role, text) pairs."""

    step: str
    text: str
    source: str
    prompt_id: str
    messages: tuple[tuple[str, str], ...]


def load(step: TeacherStep, path: Path | None = None) -> PromptText:
    """Read the prompt of `step` from `path`, or the default one of its method.

    Raises ConfigError if the file cannot be read, has an unknown placeholder, or lacks a text or a marker.
    """
    if path is None:
        source = f"recycledb:{step.name}"
        text = step.wording()
    else:
        source = str(path)
        text = _read(step.name, path)
    return parse(step, text, source)


def parse(step: TeacherStep, text: str, source: str) -> PromptText:
    """Check the text of a prompt and split it into messages; raises ConfigError like `load`."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    _check_placeholders(step, text, source)
    lower = text.lower()
    for marker in step.markers:
        if marker.lower() not in lower:
            raise ConfigError(
                f"prompt {source} for {step.name} does not contain {marker}, which the extraction of the reply needs"
            )
    messages = _split(text)
    if not any(role == "user" for role, _ in messages):
        raise ConfigError(f"prompt {source} for {step.name} has no <<user>> message")
    return PromptText(step.name, text, source, prompt_id_of(step.name, text), messages)


def prompt_id_of(step: str, text: str) -> str:
    """Return the content address of a step's wording."""
    return content_id("prompt", str(step), text, length=IDENTITY_LENGTH)


def render(prompt: PromptText, shown: Sequence[Texts]) -> list[dict[str, str]]:
    """Return the chat messages that ask `prompt` about the variants shown, as {"role", "content"} dictionaries."""
    values = dict([*_values(shown), *_more_values(shown)])
    kept = {"input": bool(shown[0].input), context.NAME: bool(shown[0].context)}
    messages = [(role, _drop_sections(text, kept)) for role, text in prompt.messages]
    own = any(context.has_place(text) for _, text in prompt.messages)
    given = None if own else shown[0].context
    found = []
    for role, text in messages:
        at = context.place_of_block(text) if given else None
        if given and at is not None:
            content, given = _fill(text[:at], values) + context.block(given) + _fill(text[at:], values), None
        else:
            content = _fill(text, values)
        found.append({"role": role, "content": content})
    return found


def _values(shown: Sequence[Texts]) -> Iterator[tuple[str, str]]:
    for number, texts in enumerate(shown, 1):
        for name, value in zip(Texts._fields, texts, strict=True):
            yield (name if number == 1 else f"{name}_{number}"), value
    yield context.NAME, context.shown(shown[0].context)  # the same for all: they are variants of one sample


def _more_values(shown: Sequence[Texts]) -> Iterator[tuple[str, str]]:
    """Yield the further placeholders of steps that measures and judgings ask."""
    for number, texts in enumerate(shown, 1):
        question = f"{texts.instruction}\n{texts.input}" if texts.input else texts.instruction
        for name, value in (("question", question), ("answer", texts.output)):
            if number == 1:
                yield name, value
            yield f"{name}_{number}", value
        if number == 2:
            yield "reference", texts.output


def _read(step: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"prompt file {path} for {step} does not exist") from error
    except OSError as error:
        raise ConfigError(f"prompt file {path} for {step} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt file {path} for {step} is not UTF-8 text (byte {error.start})") from error


def _check_placeholders(step: TeacherStep, text: str, source: str) -> None:
    depth, opened = 0, ""
    for match in _SECTION_MARK.finditer(text):
        kind, name = match[1] or match[3], match[2] or match[4]
        depth += 1 if kind == "#" else -1
        opened = name if kind == "#" else opened
        if name not in _SECTIONS or name != opened or depth not in (0, 1):
            raise ConfigError(f"prompt {source} for {step.name}: {match[0].strip()} is misplaced or unknown")
    if depth:
        raise ConfigError(f"prompt {source} for {step.name}: {{{{#{opened}}}}} is not closed by {{{{/{opened}}}}}")
    named = set(_PLACEHOLDER.findall(_SECTION_MARK.sub("", text)))
    most = [Texts("", "", "")] * step.shown
    placeholders = [name for name, _ in (*_values(most), *(() if step.inputs else _more_values(most)))]
    for name in sorted(named.difference(placeholders)):
        known = ", ".join(f"{{{each}}}" for each in placeholders)
        raise ConfigError(f"prompt {source} for {step.name} has an unknown placeholder {{{name}}}; use {known}")
    for name in step.needs:
        if name not in named:
            raise ConfigError(f"prompt {source} for {step.name} has no {{{name}}}, which the step needs")


def _split(text: str) -> tuple[tuple[str, str], ...]:
    marks = list(_ROLE.finditer(text))
    if not marks:
        return (("user", text.strip()),)
    if text[: marks[0].start()].strip():
        return _split(f"<<user>>\n{text}")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple((mark[1], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True))


def _drop_sections(text: str, kept: Mapping[str, bool]) -> str:
    pieces: list[str] = []
    inside, start = False, 0
    for match in _SECTION_MARK.finditer(text):
        if not inside or kept[match[2] or match[4]]:
            pieces.append(text[start : match.start()])
        inside, start = not inside, match.end()
    return "".join([*pieces, text[start:]])


def _fill(text: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)
