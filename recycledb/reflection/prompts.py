"""Prompts: the wording of the three steps, as files that a user can replace, and their rendering to chat messages.

A prompt file is plain text:

- A line `<<system>>` or `<<user>>` begins a message; without any such line the whole file is the user's message.
- `{instruction}`, `{input}` and `{output}` stand for the texts of the sample that is asked about.
- `{{#input}} … {{/input}}` is left out where the sample has no input. A section's marker that fills a line takes the
  line's end with it.

Invariant: a prompt's id is the hash of its step and its text as read, so an edited file is a new prompt and makes new
rows beside the old. Texts are put in literally and in one pass: whatever braces or markers a sample holds, it cannot
become part of the prompt's own form.
This module refuses prompts that could not work: without a text that the step reads, or without the markers by which the
reply is read (`recycledb.reflection.extraction`). It holds no model-specific wording.
"""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from recycledb.errors import ConfigError
from recycledb.schema import IDENTITY_LENGTH, Step, Texts, content_id

MARKERS: dict[Step, tuple[str, ...]] = {
    Step.COMPRESS: ("[Instruction]", "[End]"),
    Step.REFLECT_INSTRUCTION: ("[New Instruction]", "[New Answer]", "[End]"),
    Step.REFLECT_RESPONSE: ("[Better Answer]", "[End]"),
}

# A prompt without one of these would drop a text in silence.
_NEEDED: dict[Step, tuple[str, ...]] = {
    Step.COMPRESS: ("instruction", "input"),
    Step.REFLECT_INSTRUCTION: ("instruction", "output"),
    Step.REFLECT_RESPONSE: ("instruction", "input", "output"),
}

_ROLE = re.compile(r"^<<(system|user)>>[ \t]*\n?", re.MULTILINE)
_SECTION_MARK = re.compile(r"^\{\{([#/])(\w+)\}\}[ \t]*\n|\{\{([#/])(\w+)\}\}", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True, slots=True)
class PromptText:
    """A step's prompt: its text as read, where it came from, and its messages as (role, text) pairs."""

    step: Step
    text: str
    source: str
    prompt_id: str
    messages: tuple[tuple[str, str], ...]


def load(step: Step, path: Path | None = None) -> PromptText:
    """Read the prompt of `step` from `path`, or the one that ships with recycledb.

    Raises ConfigError where the file cannot be read, names an unknown placeholder, or lacks a text or a marker.
    """
    if path is None:
        source = f"recycledb:{step}"
        text = resources.files("recycledb.reflection").joinpath(f"prompts/{step}.txt").read_text(encoding="utf-8")
    else:
        source = str(path)
        text = _read(step, path)
    return parse(step, text, source)


def parse(step: Step, text: str, source: str) -> PromptText:
    """Check the text of a prompt and return it split into messages; raises ConfigError like `load`."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    _check_placeholders(step, text, source)
    lower = text.lower()
    for marker in MARKERS[step]:
        if marker.lower() not in lower:
            raise ConfigError(f"prompt {source} for {step} does not ask for {marker}, by which the reply is read")
    messages = _split(text)
    if not any(role == "user" for role, _ in messages):
        raise ConfigError(f"prompt {source} for {step} has no <<user>> message")
    return PromptText(step, text, source, prompt_id_of(step, text), messages)


def prompt_id_of(step: Step, text: str) -> str:
    """Return the content address of a step's wording."""
    return content_id("prompt", step, text, length=IDENTITY_LENGTH)


def render(prompt: PromptText, texts: Texts) -> list[dict[str, str]]:
    """Return the chat messages that ask `prompt` about `texts`, as {"role", "content"} dictionaries."""
    values = texts._asdict()
    return [
        {"role": role, "content": _fill(_drop_sections(text, keep=bool(texts.input)), values)}
        for role, text in prompt.messages
    ]


def _read(step: Step, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"prompt file {path} for {step} does not exist") from error
    except OSError as error:
        raise ConfigError(f"prompt file {path} for {step} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt file {path} for {step} is not UTF-8 text (byte {error.start})") from error


def _check_placeholders(step: Step, text: str, source: str) -> None:
    depth = 0
    for match in _SECTION_MARK.finditer(text):
        kind, name = match[1] or match[3], match[2] or match[4]
        depth += 1 if kind == "#" else -1
        if name != "input" or depth not in (0, 1):
            raise ConfigError(f"prompt {source} for {step}: {match[0].strip()} is out of place or unknown")
    if depth:
        raise ConfigError(f"prompt {source} for {step}: {{{{#input}}}} is not closed by {{{{/input}}}}")
    named = set(_PLACEHOLDER.findall(_SECTION_MARK.sub("", text)))
    for name in sorted(named - set(Texts._fields)):
        known = ", ".join(f"{{{field}}}" for field in Texts._fields)
        raise ConfigError(f"prompt {source} for {step} has an unknown placeholder {{{name}}}; known are {known}")
    for name in _NEEDED[step]:
        if name not in named:
            raise ConfigError(f"prompt {source} for {step} lacks {{{name}}}, which the step reads")


def _split(text: str) -> tuple[tuple[str, str], ...]:
    marks = list(_ROLE.finditer(text))
    if not marks:
        return (("user", text.strip()),)
    if text[: marks[0].start()].strip():
        return _split(f"<<user>>\n{text}")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple((mark[1], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True))


def _drop_sections(text: str, keep: bool) -> str:
    pieces: list[str] = []
    inside, start = False, 0
    for match in _SECTION_MARK.finditer(text):
        if keep or not inside:
            pieces.append(text[start : match.start()])
        inside, start = not inside, match.end()
    return "".join([*pieces, text[start:]])


def _fill(text: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)
