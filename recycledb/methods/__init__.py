"""All methods: those included in recycledb, and those that installed packages register.

A package registers a method with an entry point in the group `recycledb.methods` that refers to a `Method`:

    [project.entry-points."recycledb.methods"]
    translation = "my_package:TRANSLATION"

Invariant: names of kinds, steps, measures and transforms are unique over all methods, and no kind is made, directly or indirectly, from
itself. A package that violates this is rejected with an error that names it, before any work starts.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from recycledb.errors import ConfigError
from recycledb.methods.definition import (
    DIGITS,
    READOUT,
    Derived,
    Draw,
    Extracted,
    Facts,
    Input,
    Method,
    Ordering,
    Parts,
    Placed,
    Pool,
    Rating,
    Readout,
    Source,
    Statistic,
    StudentMeasure,
    TeacherMeasure,
    TeacherStep,
    TextFile,
    Tokenizer,
    Transform,
    VariantKind,
    Vector,
)
from recycledb.schema import ORIGIN

__all__ = [
    "DIGITS",
    "READOUT",
    "Derived",
    "Draw",
    "Extracted",
    "Facts",
    "Input",
    "Method",
    "Ordering",
    "Parts",
    "Placed",
    "Pool",
    "Rating",
    "Readout",
    "Source",
    "Statistic",
    "StudentMeasure",
    "TeacherMeasure",
    "TeacherStep",
    "TextFile",
    "Tokenizer",
    "Transform",
    "VariantKind",
    "Vector",
    "kinds",
    "measures",
    "methods",
    "orderings",
    "statistics",
    "steps",
    "teacher_measures",
    "transforms",
    "versions",
]

GROUP = "recycledb.methods"
COMMON_VERSION = "extractor"  # the name in the store of the extractor version that the built-in steps share
SCORE = "score"  # the step of a sync in which students score
_ORIGIN = VariantKind(ORIGIN, "origin", "the sample as imported")


def _built_in() -> tuple[Method, ...]:
    from recycledb.methods.cosine import COSINE
    from recycledb.methods.embedding import EMBEDDING
    from recycledb.methods.expected import EXPECTED
    from recycledb.methods.ifd import IFD
    from recycledb.methods.judging import JUDGING
    from recycledb.methods.mosaic import MOSAIC
    from recycledb.methods.orders import ORDERS
    from recycledb.methods.rating import RATING
    from recycledb.methods.reflection import REFLECTION
    from recycledb.methods.ruler import RULER
    from recycledb.methods.selectit import SELECTIT

    return REFLECTION, IFD, SELECTIT, EXPECTED, EMBEDDING, COSINE, ORDERS, RULER, MOSAIC, RATING, JUDGING


@cache
def methods() -> tuple[Method, ...]:
    """Return all methods, the built-in ones first; raise ConfigError if a package's method cannot be used."""
    found = list(_built_in())
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        method = _loaded(point)
        for what, name in _clashes(found, method):
            raise ConfigError(f"{_called(point)}: a {what} {name!r} already exists; rename it or uninstall the package")
        _require_order([*found, method], _called(point))
        found.append(method)
    return tuple(found)


def _loaded(point: EntryPoint) -> Method:
    try:
        method = point.load()
    except Exception as error:  # an import may raise anything; the message must name the package
        raise ConfigError(f"{_called(point)} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(method, Method):
        raise ConfigError(
            f"{_called(point)}: {point.value} is a {type(method).__name__}, not a recycledb.methods.Method"
        )
    return method


def _called(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an installed package"
    return f"method {point.name!r} of {package}"


def _names(method: Method) -> Iterator[tuple[str, str]]:
    yield "method", method.name
    yield from (("kind", kind.name) for kind in method.kinds)
    yield from (("step", step.name) for step in method.steps)
    yield from (("measure", measure.name) for measure in method.measures)
    yield from (("measure", measure.name) for measure in method.teacher_measures)
    yield from (("transform", transform.name) for transform in method.transforms)
    yield from (("ordering", ordering.name) for ordering in method.orderings)


def _clashes(found: Iterable[Method], method: Method) -> Iterator[tuple[str, str]]:
    taken = {("kind", ORIGIN), ("step", SCORE), *(name for each in found for name in _names(each))}
    seen: set[tuple[str, str]] = set()
    for name in _names(method):
        if name in taken or name in seen:
            yield name
        seen.add(name)


def _require_order(found: Iterable[Method], called: str) -> None:
    """Raise ConfigError if a kind is made from itself, or a step or transform uses a kind that no method defines."""
    found = list(found)
    known = {ORIGIN, *(kind.name for method in found for kind in method.kinds)}
    made_of: dict[str, set[str]] = {}
    for step in (step for method in found for step in method.steps):
        for each in step.inputs:
            for kind in (*each.kinds, *each.beside, *([each.gives] if each.gives else [])):
                if kind not in known:
                    raise ConfigError(f"{called}: step {step.name!r} uses the kind {kind!r}, which no method defines")
            if each.gives:
                made_of.setdefault(each.gives, set()).update(each.kinds, each.beside)
    transforms = [transform for method in found for transform in method.transforms]
    derived = {transform.kind for transform in transforms}
    for transform in transforms:
        for kind in (transform.kind, *transform.of):
            if kind not in known:
                raise ConfigError(
                    f"{called}: transform {transform.name!r} uses the kind {kind!r}, which no method defines"
                )
        for kind in derived.intersection(transform.of):
            raise ConfigError(f"{called}: transform {transform.name!r} uses {kind!r} variants, which a transform makes")
    for kind in made_of:
        if kind in _above(kind, made_of):
            raise ConfigError(
                f"{called}: {kind!r} variants would be made from {kind!r} variants; give the result another kind"
            )


def _above(kind: str, made_of: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(made_of.get(kind, ()))
    while waiting:
        above = waiting.pop()
        if above not in found:
            found.add(above)
            waiting.extend(made_of.get(above, ()))
    return found


@cache
def kinds() -> Mapping[str, VariantKind]:
    """Return all kinds of variants by name, `origin` first."""
    found = (_ORIGIN, *(kind for method in methods() for kind in method.kinds))
    return MappingProxyType({kind.name: kind for kind in found})


@cache
def scored_kinds() -> tuple[str, ...]:
    """Return the names of the kinds that students measure by default."""
    return tuple(kind.name for kind in kinds().values() if kind.scored)


@cache
def steps() -> Mapping[str, TeacherStep]:
    """Return all teacher steps by name."""
    return MappingProxyType({step.name: step for method in methods() for step in method.steps})


@cache
def measures() -> Mapping[str, StudentMeasure]:
    """Return all student measures by name."""
    return MappingProxyType({measure.name: measure for method in methods() for measure in method.measures})


@cache
def teacher_measures() -> Mapping[str, TeacherMeasure]:
    """Return all measures by teachers, by name."""
    found = (measure for method in methods() for measure in method.teacher_measures)
    return MappingProxyType({measure.name: measure for measure in found})


@cache
def transforms() -> Mapping[str, Transform]:
    """Return all transforms by name."""
    return MappingProxyType({transform.name: transform for method in methods() for transform in method.transforms})


@cache
def orderings() -> Mapping[str, Ordering]:
    """Return all orderings by name."""
    return MappingProxyType({ordering.name: ordering for method in methods() for ordering in method.orderings})


@cache
def statistics() -> Mapping[str, Statistic]:
    """Return all statistics by name; one that several measures share appears once."""
    of_methods = (statistic for method in methods() for statistic in method.statistics)
    of_measures = (statistic for measure in measures().values() for statistic in measure.statistics)
    found: dict[str, Statistic] = {}
    for statistic in (*of_methods, *of_measures):
        if found.setdefault(statistic.name, statistic) is not statistic:
            raise ConfigError(
                f"two statistics are named {statistic.name!r}; one package must rename its own, or import the other's"
            )
    return MappingProxyType(found)


@cache
def versions() -> Mapping[str, int]:
    """Return each step's extractor version."""
    return MappingProxyType({step.name: step.version for step in steps().values()})


@cache
def version_names() -> Mapping[str, int]:
    """Return the extractor versions by their names in a store: one for all built-in steps, and one for each step of a package."""
    from recycledb.methods.reflection import REFLECTION

    foreign = (step for step in steps().values() if step not in REFLECTION.steps)
    return MappingProxyType(
        {COMMON_VERSION: REFLECTION.steps[0].version, **{step.name: step.version for step in foreign}}
    )
