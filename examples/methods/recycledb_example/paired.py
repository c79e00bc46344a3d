"""A transform: two samples in one, with one answer after the other."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from recycledb.methods import Derived, Draw, Method, Source, Transform, VariantKind
from recycledb.schema import Texts


def question(texts: Texts) -> str:
    """Return a sample's question."""
    return f"{texts.instruction}\n{texts.input}" if texts.input else texts.instruction


def pair(sources: Iterable[Source], draw: Draw, options: Mapping[str, Any]) -> Iterator[Derived]:
    """Yield the sources two by two; of which of them the answer comes first is drawn."""
    each = iter(sources)
    for first, second in zip(each, each, strict=False):  # the last of an odd number waits for a companion
        swapped = draw(2, first.variant_id) == 1
        asked = f"{options['opening']}\n\n1. {question(first.texts)}\n\n2. {question(second.texts)}"
        answers = [f"1. {first.texts.output}", f"2. {second.texts.output}"]
        texts = Texts(asked, "", "\n\n".join(reversed(answers) if swapped else answers))
        yield Derived((first.variant_id, second.variant_id), texts, parameters={"swapped": swapped})


PAIRED = Method(
    name="paired",
    kinds=(VariantKind("paired", "paired", "two samples in one"),),
    transforms=(
        Transform(
            name="pair",
            kind="paired",
            help="two samples in one",
            make=pair,
            version=1,
            options={"opening": "Answer both questions."},
        ),
    ),
)
