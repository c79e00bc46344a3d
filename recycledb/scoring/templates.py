"""The prompt templates of IFD and rIFD: constants of the metric, kept in `templates.json` beside this module.

Invariant: a template's text never changes; another wording is another template with another name, since every number
computed with it depends on it. This module refuses to tokenise: it turns texts into texts.

The wordings are those of the published scorers: IFD (Li et al., arXiv:2308.12032), Superfiltering (arXiv:2402.00530),
Selective Reflection-Tuning with the reversed IFD (arXiv:2402.10110).
"""

import json
from importlib import resources
from typing import Final

from recycledb.errors import ConfigError
from recycledb.schema import Texts

_CONSTANTS: Final = json.loads(resources.files(__package__).joinpath("templates.json").read_text("utf-8"))
_REVERSE: Final[str] = _CONSTANTS["reverse"]

TEMPLATES: Final[tuple[str, ...]] = tuple(name for name in _CONSTANTS if name != "reverse")


def _form(template: str, form: str) -> str:
    if template not in TEMPLATES:
        raise ConfigError(f"unknown prompt template {template!r}: choose one of {', '.join(TEMPLATES)}")
    text: str = _CONSTANTS[template][form]
    return text


def forward_prompt(template: str, texts: Texts) -> str:
    """Return p, the context of A_condition: the template's form with input where there is an input."""
    form = _form(template, "input" if texts.input else "no_input")
    return form.format(instruction=texts.instruction, input=texts.input)


def reverse_prompt(template: str, texts: Texts) -> str:
    """Return q, the context of Q_condition: the template's form without input around the question for the instruction."""
    return _form(template, "no_input").format(instruction=_REVERSE.format(output=texts.output))


def question(texts: Texts) -> str:
    """Return t, the target of the Q statistics: instruction and input without a separator, as published."""
    return texts.instruction + texts.input
