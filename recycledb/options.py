"""Tables of recycledb.toml whose keys are the options of a method: measures and augmentations.

An option that is a file (`TextFile`) has the file's text as its value, so that a measure depends on what the file says and not on where
it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from recycledb import methods
from recycledb.errors import ConfigError
from recycledb.schema import IDENTITY_LENGTH, content_id
from recycledb.suggestions import did_you_mean

# Where a list is expected, a text is a list of one.
Listed = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
Names = Annotated[tuple[str, ...], Field(strict=False), Listed]

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LONGEST_S = 1_000_000.0  # 11 days: more is taken for a mistake


def _wait(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value <= LONGEST_S:
        shown = (
            f"{value:g}" if isinstance(value, float) or value.bit_length() < 64 else "an integer of that many digits"
        )
        raise ValueError(f"{shown} is out of range: give seconds from 0 to {LONGEST_S:,.0f}")
    return value


Seconds = Annotated[float, BeforeValidator(_wait)]


class Settings(BaseModel):
    """A table of the file: immutable; unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Optioned(Settings):
    """A table whose other keys are the options of a method."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str = Field(description="NAME in the table's name.")
    method: str = Field("", description="The method. Default: the one with the table's name.")

    @property
    def given(self) -> dict[str, Any]:
        """The options that the file sets."""
        return dict(self.model_extra or {})

    def options(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the method's options: the defaults, updated by the file's."""
        return {key: _default(value) for key, value in defaults.items()} | self.given

    def _check(self, what: str, known: Mapping[str, Any]) -> None:
        if self.method not in known:
            listed = f"use one of {', '.join(known)}" if known else "none is installed; install a package that has one"
            raise ValueError(f"unknown {what} {self.method!r}{did_you_mean(self.method, known)}: {listed}")
        defaults = known[self.method].options
        for key, value in self.given.items():
            if key not in defaults:
                listed = ", ".join(defaults) or "none"
                meant = did_you_mean(key, (*defaults, *type(self).model_fields))
                raise ValueError(f"unknown option {key!r} of {what} {self.method!r}{meant}: its options are {listed}")
            default = _default(defaults[key])
            if not isinstance(value, type(default)) and not (isinstance(default, float) and isinstance(value, int)):
                raise ValueError(
                    f"{key} = {value!r} is not of type {type(default).__name__}, like its default {default!r}"
                )


class MeasureConfig(Optioned):
    """A number for each variant: a method computes it under each student, or a teacher gives it."""

    teacher: str | None = Field(
        None, description="For `rating`: the teacher to ask. Default: that of [sync], or the only one in this file."
    )
    students: Names = Field((), description="The students to measure with. Default: those that a sync scores with.")
    kinds: Names = Field((), description="The kinds of variants to measure. Default: all that are scored.")

    @model_validator(mode="after")
    def _known(self) -> "MeasureConfig":
        self._check("measure", measures_by_name())
        _require_kinds(self.kinds, list(methods.kinds()))
        measure = measures_by_name()[self.method]
        measure.check(self.options(measure.options))
        if self.by_teacher and self.students:
            raise ValueError(f"a teacher gives the numbers of method {self.method!r}: set teacher, not students")
        if self.teacher is not None and not self.by_teacher:
            raise ValueError(f"students give the numbers of method {self.method!r}: set students, not teacher")
        return self

    @property
    def by_teacher(self) -> bool:
        """Whether a teacher gives the numbers."""
        return self.method in methods.teacher_measures()


class JudgingConfig(Settings):
    """A comparison of two variants of each sample by a teacher, in both orders."""

    name: str = Field(description="NAME in the table's name.")
    teacher: str | None = Field(
        None, description="The teacher to ask. Default: that of [sync], or the only one in this file."
    )
    between: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        description='Two kinds of variants, such as `["origin", "reflect_response"]`; for answers of models `"answer/AUTHOR"`.'
    )
    prompts: str = Field(
        "",
        description="A file with the whole prompt: {question}, {answer_1} and {answer_2}, and the request for two scores on the first "
        "line. Default: ours.",
    )

    @model_validator(mode="after")
    def _known(self) -> "JudgingConfig":
        if len(self.between) != 2 or _within(*self.between) or _within(*reversed(self.between)):
            raise ValueError(
                f"between = {list(self.between)}: give two different kinds of variants, such as origin and reflect_response"
            )
        _require_kinds(self.kinds, list(methods.kinds()))
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the variants that are compared."""
        return tuple(dict.fromkeys(each.partition("/")[0] for each in self.between))


def _within(one: str, other: str) -> bool:
    """Return whether the variants that `one` names are among those of `other`."""
    return one == other or one.startswith(f"{other}/")


def measures_by_name() -> Mapping[str, methods.StudentMeasure | methods.TeacherMeasure]:
    """Return the measures of students and those of teachers."""
    return {**methods.measures(), **methods.teacher_measures()}


class AugmentationConfig(Optioned):
    """Variants that a transform makes from others, without a model."""

    of: Names = Field((), description="The kinds of variants to use. Default: set by the method.")
    seed: int = Field(0, description="The seed of all random choices.")
    rounds: PositiveInt = Field(1, description="How often each variant is used.")

    @model_validator(mode="after")
    def _known(self) -> "AugmentationConfig":
        self._check("transform", methods.transforms())
        made = {transform.kind for transform in methods.transforms().values()}
        _require_kinds(self.of, [kind for kind in methods.kinds() if kind not in made])
        self.transform.check(self.options(self.transform.options))
        return self

    @property
    def transform(self) -> methods.Transform:
        """The method."""
        return methods.transforms()[self.method]

    @property
    def sources(self) -> tuple[str, ...]:
        """The kinds of variants that it uses, in an order of their own."""
        return tuple(sorted(set(self.of or self.transform.of)))

    @property
    def tokenizers(self) -> dict[str, str]:
        """The students whose tokenizers it uses, by option."""
        options = self.options(self.transform.options)
        named = [key for key, default in self.transform.options.items() if isinstance(default, methods.Tokenizer)]
        return {key: options[key] for key in named if options[key]}


def _require_kinds(given: tuple[str, ...], known: list[str]) -> None:
    for kind in given:
        if kind not in known:
            raise ValueError(f"unknown kind {kind!r}{did_you_mean(kind, known)}: use one of {', '.join(known)}")


def augmentation_id_of(method: str, version: int, seed: int, parameters: Mapping[str, Any]) -> str:
    """Return the content address of what changes the variants of a transform."""
    return content_id("augmentation", method, version, seed, parameters, length=IDENTITY_LENGTH)


def with_files(row: Mapping[str, Any], table: str, folder: Path) -> dict[str, Any]:
    """Return a table's values with each option that is a file replaced by the file's text; `folder` is that of the configuration.

    Raises ConfigError for a file that cannot be read.
    """
    known: Mapping[str, Any] = measures_by_name() if table == "measures" else methods.transforms()
    method = row.get("method")
    defaults = known[method].options if isinstance(method, str) and method in known else {}
    if table == "judgings":
        defaults = {"prompts": methods.TextFile("")}
    values = dict(row)
    for key, default in defaults.items():
        if isinstance(default, methods.TextFile) and isinstance(row.get(key), str):
            path = folder / Path(row[key]).expanduser()
            if row[key] in default.named:
                values[key] = default.named[row[key]]
                continue
            try:
                values[key] = path.read_bytes().decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not UTF-8 text"
                named = f"; {key} may also be one of {', '.join(default.named)}" if default.named else ""
                raise ConfigError(f"{table}.{row.get('name')}: {key}: {path}: {reason}{named}") from error
    return values


def _default(value: Any) -> Any:
    if isinstance(value, methods.Tokenizer):
        return ""
    return value.text if isinstance(value, methods.TextFile) else value


def plain(value: Any) -> Any:
    """Return a parameter with whole floats as integers: 0 and 0.0 mean the same to a server."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
