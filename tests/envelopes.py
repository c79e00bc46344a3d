"""Envelopes: the ways in which teachers wrap a text between a section's markers, to be filled with any text.

They are combined from heads (the marker, on a line of its own or before the text, in lists, bold type, back-ticks or headings), tails
(the forms of `[End]`) and wraps of the whole section (quoted, with Windows' line ends, with indented blank lines).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

NUMBERED = "{n}. **{label}:**\n   "  # gpt-4o-mini's: a list item with the section's name, and the marker on the item's next line

# The head of a section, and what its list item or marker puts before each further line of the text.
HEADS: tuple[tuple[str, str], ...] = (
    ("[{label}]\n", ""),
    ("[{label}] ", ""),
    ("[{label}]\n\n", ""),
    ("[{label}]: ", ""),
    ("**[{label}]**\n", ""),
    ("**[{label}]** ", ""),
    ("**[{label}]:** ", ""),
    ("**[{label}]**:\n\n", ""),
    ("__[{label}]__\n", ""),
    ("`[{label}]`\n", ""),
    ("`[{label}]` ", ""),
    ("`[{label}]`: ", ""),
    ("**`[{label}]`**\n\n", ""),
    ("### [{label}]\n\n", ""),
    ("### `[{label}]`\n", ""),
    ("### {label}\n\n", ""),
    ("### {n}. {label}\n[{label}]\n", ""),
    ("**{label}:**\n", ""),
    ("**{label}:** ", ""),
    ("**{n}. {label}:**\n[{label}]\n", ""),
    ("{label}: ", ""),
    ("{n}. [{label}] ", ""),
    ("{n}. [{label}]\n", ""),
    ("{n}. **{label}:**\n[{label}] ", ""),
    ("{n}. **{label}:**\n[{label}]\n\n", ""),
    ("{n}. [{label}] ", "   "),
    ("{n}. [{label}]\n   ", "   "),
    ("{n}. **[{label}]** ", "   "),
    ("{n}. **[{label}]**\n   ", "   "),
    ("{n}. `[{label}]`\n\n   ", "   "),
    (NUMBERED + "[{label}] ", "   "),
    (NUMBERED + "[{label}]\n   ", "   "),
    (NUMBERED + "\n   [{label}]\n\n   ", "   "),
    (NUMBERED + "**[{label}]** ", "   "),
    (NUMBERED + "`[{label}]` ", "   "),
    (NUMBERED + "- [{label}] ", "     "),
    ("{n}. **{label}:** ", "   "),
    ("{n}. **{label}:**\n   ", "   "),
    ("{n}. **{label}**:\n    [{label}] ", "    "),
    ("{n}. **{label}**:\n    [{label}]\n    ", "    "),
    ("- [{label}] ", "  "),
    ("- **[{label}]**\n  ", "  "),
    ("- **{label}:**\n\n  [{label}]\n  ", "  "),
    ("\t[{label}] ", "\t"),
    ("\t[{label}]\n\t", "\t"),
)
TAILS = (
    "\n{indent}[End]",
    " [End]",
    "\n[End]",
    "\n{indent}**[End]**",
    " **[End]**",
    "\n\n{indent}`[End]`",
    " `[End]`",
    "",
)


def quoted(section: str) -> str:
    """Put `> ` before each line."""
    return "\n".join(f"> {line}".rstrip() if not line else f"> {line}" for line in section.split("\n"))


def windows(section: str) -> str:
    """Use Windows' line ends."""
    return section.replace("\n", "\r\n")


WRAPS: dict[str, Callable[[str], str]] = {"": str, "quoted": quoted, "windows": windows}


class Envelope(NamedTuple):
    """One way to write a section."""

    head: str
    indent: str
    tail: str
    wrap: str = ""
    padded: bool = False  # blank lines are indented too

    def section(self, label: str, number: int, text: str) -> str:
        """Return the text in this envelope."""
        first, *rest = text.split("\n")
        lines = [first, *(self.indent + line if line or self.padded else line for line in rest)]
        tail = self.tail.replace("{indent}", self.indent)
        head = self.head.replace("{n}", str(number)).replace("{label}", label)
        return WRAPS[self.wrap](head + "\n".join(lines) + tail)


def every() -> Iterator[Envelope]:
    """Yield each envelope."""
    for head, indent in HEADS:
        for tail in TAILS:
            if not indent and tail == "\n{indent}[End]":
                continue  # the same as without indent
            for wrap in WRAPS:
                yield Envelope(head, indent, tail, wrap)
            if indent:
                yield Envelope(head, indent, tail, padded=True)


def answer_in(envelope: Envelope, text: str) -> str:
    """Return a reply to the step `reflect_response` with this answer."""
    return f"1. The answer is short.\n\n{envelope.section('Better Answer', 2, text)}\n"


def pair_in(envelope: Envelope, instruction: str, answer: str) -> str:
    """Return a reply to the step `reflect_instruction` with this instruction and its answer."""
    first, second = envelope.section("New Instruction", 2, instruction), envelope.section("New Answer", 3, answer)
    return f"1. It is too simple.\n\n{first}\n\n{second}\n"
