"""How a sample's context (a system prompt, earlier turns) is shown to a model: to a teacher as a block, to a student in its template.

Invariant: a wording without its own place for the context gets the block before the paragraph that has the instruction; texts without a
context give the same bytes as before contexts existed. The wording of the block and the templates' turns never change, since stored
replies and losses depend on them.
"""

import re

from recycledb.schema import context_messages

NAME = "context"  # the placeholder {context}

_OPENING = """\
What comes before the instruction: a system prompt or earlier turns of the conversation. It stays as it is; read the instruction and its \
answer together with it.

<context>
"""
_PLACEHOLDER = re.compile(r"\{context\}")
_INSTRUCTION = re.compile(r"\{(instruction|question)\}")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


def shown(context: str | None) -> str:
    """Return the messages of a context as text for a prompt, each after its role; empty if there are none."""
    return "\n\n".join(f"[{role}]\n{content}" for role, content in context_messages(context))


def block(context: str) -> str:
    """Return the paragraphs that show a context where a wording has no place of its own for it."""
    return f"{_OPENING}{shown(context)}\n</context>\n\n"


def has_place(wording: str) -> bool:
    """Return whether a wording has a place of its own for the context."""
    return _PLACEHOLDER.search(wording) is not None


def place_of_block(wording: str) -> int | None:
    """Return where in a wording the block belongs: before the paragraph with {instruction} or {question}; None without either."""
    first = _INSTRUCTION.search(wording)
    if first is None:
        return None
    return max((found.end() for found in _PARAGRAPH.finditer(wording, 0, first.start())), default=0)
