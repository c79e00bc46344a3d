"""Selective Reflection-Tuning (Li et al., ACL 2024, arXiv:2402.10110): a teacher rewrites a sample's instruction and its response.

Three steps. In a sample with an input, instruction and input are first compressed into one instruction. Then the teacher reflects on the
instruction, which gives a new instruction and its answer, and on the response, both of the original sample and of the new instruction.
The recipe `selective` decides from the student's scores which of the variants to keep.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib import resources

from recycledb.methods import extraction
from recycledb.methods.definition import Extracted, Input, Method, TeacherStep, VariantKind
from recycledb.methods.extraction import Form
from recycledb.methods.ifd import is_number
from recycledb.schema import ORIGIN, Texts

# Extractor version of all three steps: of `FORMS` below and of `recycledb.methods.extraction`. 2: layout is taken off (`unwrapping`).
VERSION = 2


class Kind(StrEnum):
    """The kinds of variants that the method reads and makes; the scored ones are the splits of the published statistics."""

    ORIGIN = ORIGIN
    COMPRESSED = "compressed"
    REFLECT_INSTRUCTION = "reflect_instruction"
    REFLECT_RESPONSE = "reflect_response"
    REFLECT_BOTH = "reflect_both"


SPLITS = (Kind.ORIGIN, Kind.REFLECT_INSTRUCTION, Kind.REFLECT_RESPONSE, Kind.REFLECT_BOTH)  # what the paper scores


class Step(StrEnum):
    """The names of the steps."""

    COMPRESS = "compress"
    REFLECT_INSTRUCTION = "reflect_instruction"
    REFLECT_RESPONSE = "reflect_response"


FORMS = {
    Step.COMPRESS: Form(
        sections=(("instruction", "[Instruction]"),),
        changes=lambda read: read.instruction,
        texts=lambda bodies, read: Texts(bodies[0], "", read.output),
        # Some teachers label the compressed instruction with the other steps' marker.
        aliases={"new instruction": "instruction"},
    ),
    Step.REFLECT_INSTRUCTION: Form(
        sections=(("new instruction", "[New Instruction]"), ("new answer", "[New Answer]")),
        changes=lambda read: read.instruction,
        texts=lambda bodies, read: Texts(bodies[0], "", bodies[1]),
    ),
    Step.REFLECT_RESPONSE: Form(
        sections=(("better answer", "[Better Answer]"),),
        changes=lambda read: read.output,
        texts=lambda bodies, read: Texts(read.instruction, read.input, bodies[0]),
    ),
}


def extract(step: str, text: str, read: Texts) -> Extracted:
    """Extract the variant's texts from `text`, the reply to a step about `read`, or the reason why there is none."""
    return extraction.extract(FORMS[Step(step)], text, read)


def _reader(step: Step) -> Callable[[str, Sequence[Texts]], Extracted]:
    return lambda text, shown: extraction.extract(FORMS[step], text, shown[0])


def _wording(step: Step) -> Callable[[], str]:
    return lambda: resources.files(__package__).joinpath(f"prompts/{step}.txt").read_text(encoding="utf-8")


# The paper's comparison: is the new instruction harder than the old one? A comparison with a missing score is false, as in the recipe
# `selective`, so both take the same branch.
_IFD = f"""
    SELECT v.variant_id, v.sample_id, v.kind,
        CASE WHEN {is_number("c")} AND {is_number("d")} THEN exp(c.loss_sum / c.n_tokens) / exp(d.loss_sum / d.n_tokens) END AS ifd
    FROM seen CROSS JOIN variant v
    JOIN loss c ON c.student_id = :lazy_student AND c.variant_id = v.variant_id AND c.stat = 'A_condition'
    JOIN loss d ON d.student_id = :lazy_student AND d.variant_id = v.variant_id AND d.stat = 'A_direct'
    WHERE v.sample_id = seen.sample_id
    AND (v.kind = 'origin' OR v.variant_id IN (SELECT variant_id FROM usable WHERE kind = 'reflect_instruction'))
"""

_WON = """v.variant_id IN (
    SELECT q.variant_id FROM ifd q JOIN ifd o ON o.sample_id = q.sample_id AND o.kind = 'origin'
    WHERE q.kind = 'reflect_instruction' AND q.ifd > o.ifd
)"""

# The origin is kept if no new instruction won. That is known once each is scored, or when no further one can be made.
_STAYED = """
    EXISTS (SELECT 1 FROM ifd o WHERE o.variant_id = v.variant_id)
    AND NOT EXISTS (
        SELECT 1 FROM usable u WHERE u.sample_id = v.sample_id AND u.kind = 'reflect_instruction'
        AND NOT EXISTS (SELECT 1 FROM ifd q WHERE q.variant_id = u.variant_id)
    )
    AND NOT EXISTS (
        SELECT 1 FROM ifd q JOIN ifd o ON o.variant_id = v.variant_id
        WHERE q.sample_id = v.sample_id AND q.kind = 'reflect_instruction' AND q.ifd > o.ifd
    )
    AND EXISTS (
        SELECT 1 FROM variant b
        JOIN reply r ON r.variant_id = b.variant_id
        LEFT JOIN extraction e ON e.text_id = r.text_id
            AND e.extractor = CASE r.step WHEN 'compress' THEN :version_compress ELSE :version_reflect_instruction END
        WHERE b.sample_id = v.sample_id AND r.teacher_id = :teacher
        AND (b.kind = 'origin' OR b.variant_id IN (SELECT variant_id FROM usable))
        AND (
            (r.step = 'reflect_instruction' AND r.prompt_id = :prompt_reflect_instruction)
            OR (r.step = 'compress' AND r.prompt_id = :prompt_compress AND (r.status = 'failed' OR e.reason IS NOT NULL))
        )
        AND (r.status = 'failed' OR e.text_id IS NOT NULL)
    )
"""

COMPRESS = TeacherStep(
    name=Step.COMPRESS.value,
    inputs=(Input((ORIGIN,), gives=Kind.COMPRESSED.value, where="v.input <> ''"),),
    wording=_wording(Step.COMPRESS),
    read=_reader(Step.COMPRESS),
    version=VERSION,
    needs=("instruction", "input"),
    markers=FORMS[Step.COMPRESS].markers,
)

REFLECT_INSTRUCTION = TeacherStep(
    name=Step.REFLECT_INSTRUCTION.value,
    inputs=(
        # Without the compress step, the teacher is shown a sample's input together with its instruction.
        Input((ORIGIN,), gives=Kind.REFLECT_INSTRUCTION.value, where="v.input <> ''", left_to=COMPRESS.name),
        Input((Kind.COMPRESSED.value,), gives=Kind.REFLECT_INSTRUCTION.value),
    ),
    wording=_wording(Step.REFLECT_INSTRUCTION),
    read=_reader(Step.REFLECT_INSTRUCTION),
    version=VERSION,
    needs=("instruction", "output"),
    markers=FORMS[Step.REFLECT_INSTRUCTION].markers,
)

REFLECT_RESPONSE = TeacherStep(
    name=Step.REFLECT_RESPONSE.value,
    inputs=(
        Input((ORIGIN,), gives=Kind.REFLECT_RESPONSE.value, lazy=_STAYED),
        Input((Kind.REFLECT_INSTRUCTION.value,), gives=Kind.REFLECT_BOTH.value, lazy=_WON),
    ),
    wording=_wording(Step.REFLECT_RESPONSE),
    read=_reader(Step.REFLECT_RESPONSE),
    version=VERSION,
    needs=("instruction", "input", "output"),
    markers=FORMS[Step.REFLECT_RESPONSE].markers,
    lazy_after=REFLECT_INSTRUCTION.name,
    lazy_tables=(("ifd", _IFD),),
)

REFLECTION = Method(
    name="reflection",
    kinds=(
        VariantKind(
            Kind.COMPRESSED.value,
            "compressed",
            "instruction and input as one instruction, with the original answer",
            scored=False,
        ),
        VariantKind(Kind.REFLECT_INSTRUCTION.value, "instruction", "a new instruction and its answer"),
        VariantKind(Kind.REFLECT_RESPONSE.value, "response", "a better answer to the original instruction"),
        VariantKind(Kind.REFLECT_BOTH.value, "both", "a better answer to the new instruction"),
    ),
    steps=(COMPRESS, REFLECT_INSTRUCTION, REFLECT_RESPONSE),
)
