"""Texts as teachers write them, with lists, code and bold type, come back exactly from every envelope."""

import pytest
from envelopes import Envelope, answer_in, every, pair_in
from hypothesis import given, settings
from hypothesis import strategies as st

from recycledb.methods.reflection import Step, extract
from recycledb.schema import Texts

READ = Texts("Name a river.", "", "The Rhine.")

PARAGRAPHS = (
    "Here are the steps:",
    "The Rhine is 1,233 km long.",
    "**Note:** it is *not* the longest",
    "In Python, 2 ** 10 is 1024, and `x[0]` is the first.",
    "See [1] and C[End] of the diagram",
    "An answer with an odd ** of its own",
    "It ends in **bold**",
    "A line.\nThe next line, directly below it.",
    "Endurance is what counts here:\nfirst",
)
BLOCKS = (
    "1. One\n2. Two\n   - nested\n     - deeper\n   - again\n3. Three",
    "1. **Plan.** First:\n\n   a paragraph of the item\n\n2. **Do.**",
    "- a\n- b\n    - c\n\n    still c\n- d",
    "```python\ndef f(x):\n    if x:\n        return 2 ** x\n\n    return None\n```",
    "Run it:\n\n```sh\nmake\n\tmake install\n```\n\nThen wait.",
    "    x = 1\n    if x:\n        y = 2",
    "\tall: build\n\t\tcc main.c",
    "def f():\n    return 1\n\n\nclass A:\n    b = 2",
    "SELECT a\n  FROM t\n  WHERE b > 1\n;",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "> A quotation,\n> of two lines.",
    "### A heading\n\nand what is below it",
    "Dear Sir,\n\n    set in\n    by four\n\nYours",
    "{\n  \"a\": [\n    1\n  ]\n}",
    "Roses are red,\n  violets are blue;\n    so it goes,\nand ends.",
)  # fmt: skip


def written() -> st.SearchStrategy[str]:
    """Return texts of one block, or of several: the first is a paragraph then, and a line without indentation is below it."""
    inner = st.lists(st.sampled_from(BLOCKS + PARAGRAPHS), max_size=3)
    below = st.sampled_from([*PARAGRAPHS, BLOCKS[0], BLOCKS[3], BLOCKS[9]])
    several = st.builds(
        lambda first, rest, last: "\n\n".join([first, *rest, last]), st.sampled_from(PARAGRAPHS), inner, below
    )
    return st.sampled_from(PARAGRAPHS + BLOCKS) | several


ENVELOPES = st.sampled_from(list(every()))


def answer(reply: str) -> str:
    found = extract(Step.REFLECT_RESPONSE, reply, READ)
    assert found.texts is not None, found.reason
    return found.texts.output


@settings(max_examples=200, deadline=None, derandomize=True)
@given(envelope=ENVELOPES, text=written())
def test_an_answer_comes_back_exactly_from_every_envelope(envelope: Envelope, text: str) -> None:
    assert answer(answer_in(envelope, text)) == text


@settings(max_examples=60, deadline=None, derandomize=True)
@given(envelope=ENVELOPES, instruction=written(), text=written())
def test_a_pair_comes_back_exactly_from_every_envelope(envelope: Envelope, instruction: str, text: str) -> None:
    found = extract(Step.REFLECT_INSTRUCTION, pair_in(envelope, instruction, text), READ)
    assert found.texts == Texts(instruction, "", text)


GPT_4O_MINI = """1. **Why the instruction is weak:** it asks for one fact.

2. **New Instruction:**
   [New Instruction] Plan a voyage:

   - from Basel
   - to Rotterdam
   [End]

3. **New Answer:**
   [New Answer] Here are the steps:

   1. One: `2 ** 3`
      - nested

   ```python
   def days(km):
       return km / 100
   ```
   2. Two **[End]**
"""


def test_the_indentation_of_the_markers_list_item_is_taken_off() -> None:
    found = extract(Step.REFLECT_INSTRUCTION, GPT_4O_MINI, READ).texts
    assert found is not None
    assert found.instruction == "Plan a voyage:\n\n- from Basel\n- to Rotterdam"
    steps = "1. One: `2 ** 3`\n   - nested\n\n```python\ndef days(km):\n    return km / 100\n```\n2. Two"
    assert found.output == f"Here are the steps:\n\n{steps}"


# A reply, and the text that is in it.
READINGS = {
    "code below an unindented marker": ("[Better Answer]\n    x = 1\n    y = 2\n[End]", "    x = 1\n    y = 2"),
    "code below an item's marker": ("3. [Better Answer]\n       x = 1\n       y = 2\n   [End]", "    x = 1\n    y = 2"),
    "code beside the marker": ("[Better Answer]     x = 1\n    y = 2\n[End]", "    x = 1\n    y = 2"),
    "code with tabs": ("[Better Answer]\n\tx = 1\n\ty = 2\n[End]", "\tx = 1\n\ty = 2"),
    "the rest is code": ("[Better Answer] def f():\n    return 1\n[End]", "def f():\n    return 1"),
    "the rest is code, in a list": ("3. [Better Answer] def f():\n    return 1\n[End]", "def f():\n    return 1"),
    "the rest is code, in a bulleted list": ("- [Better Answer] def f():\n    return 1\n[End]", "def f():\n    return 1"),
    "the rest is code, set in": ("3. [Better Answer] def f():\n       return 1\n   [End]", "def f():\n    return 1"),
    "a hanging indent": ("[Better Answer] SELECT a\n  FROM t\n[End]", "SELECT a\n  FROM t"),
    "set in with its end": ("[Better Answer]\n    One.\n    Two.\n    [End]", "One.\nTwo."),
    "set in a little": ("[Better Answer]\n  One.\n   Two.\n[End]", "One.\n Two."),
    "one line, set in": ("[Better Answer]\n     One.\n[End]", "One."),
    "an item set in by four": ("2. [Better Answer] One.\n    Two.\n[End]", "One.\nTwo."),
    "an item set in by a tab": ("2.\t[Better Answer] One.\n\tTwo.\n[End]", "One.\nTwo."),
    "an item whose text is not set in": ("2. [Better Answer] One.\nTwo.\n   - three\n[End]", "One.\nTwo.\n   - three"),
    "a fence set in": ("2. [Better Answer]\n   ```\n   a\n     b\n   ```\n   [End]", "a\n  b"),
    "a fence round code": ("[Better Answer]\n```\n    a\n    b\n```\n[End]", "    a\n    b"),
    "quoted, with a quotation": ("> [Better Answer]\n> > One.\n> \n> Two.\n> [End]", "> One.\n\nTwo."),
    "quoted, the marker only": ("> [Better Answer]\nOne.\n> Two.\n> [End]", "One.\n> Two."),
    "quoted without blanks": (">[Better Answer]\n>One.\n>\n>Two.\n>[End]", "One.\n\nTwo."),
    "a quoted item": ("> 2. [Better Answer] One.\n>    Two.\n>    [End]", "One.\nTwo."),
    "an item with a quotation": ("2. **Better Answer:**\n   > [Better Answer] One.\n   > Two.\n   > [End]", "One.\nTwo."),
    "a quotation, not quoted": ("[Better Answer]\n> One.\n> Two.\n[End]", "> One.\n> Two."),
    "an odd sign of bold type": ("**[Better Answer]** 2 ** 3 **[End]**", "2 ** 3"),
    "bold type at the end": ("**[Better Answer] See **this** [End]**", "See **this**"),
    "bold type glued to the end": ("[Better Answer] See **this**[End]", "See **this**"),
    "italics around the end": ("*[Better Answer]* One *[End]*", "One"),
    "bold from marker to text": ("**[Better Answer] One** [End]", "One"),
    "code at the end": ("`[Better Answer]` Run `ls` `[End]`", "Run `ls`"),
    "code glued to the marker": ("[Better Answer]`ls` lists.\n[End]", "`ls` lists."),
    "a marker in back-ticks, with a colon": ("`[Better Answer]:` One.\n`[End]`.", "One."),
    "bold back-ticks": ("**`[Better Answer]`**\nOne.\n**`[End]`**", "One."),
    "a mention of the marker": ("I write `[End]` last.\n`[Better Answer]`\nOne, then `[End]` of it.\n`[End]`", "One, then `[End]` of it."),
    "a numbered end": ("2. [Better Answer] One.\n3. [End]", "One."),
}  # fmt: skip


@pytest.mark.parametrize("shape", READINGS)
def test_what_belongs_to_the_text_stays_and_what_does_not_goes(shape: str) -> None:
    reply, expected = READINGS[shape]
    text = answer(reply)
    assert text == expected
    assert answer(f"[Better Answer]\n{text}\n[End]") == text
