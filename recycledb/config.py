"""recycledb.toml: the state that sync brings about, and the identities of teachers and students.

Invariant: an identity holds everything that changes an answer or a number, and nothing else: moving a server, a price
or a folder must not make anyone pay or compute twice.
Secrets are never read from the file.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from recycledb import methods
from recycledb.errors import ConfigError
from recycledb.schema import IDENTITY_LENGTH, Stat, content_id

FILE_NAME = "recycledb.toml"
DEFAULT_URL = "sqlite:///recycle.db"
STEPS = ("compress", "reflect_instruction", "reflect_response", "score")
DEFAULT_PARAMS: Mapping[str, Any] = {"temperature": 0, "top_p": 1, "max_tokens": 2048}


def _step(name: str) -> str:
    if name not in methods.steps():
        raise ValueError(f"there is no step {name!r}; there are {', '.join(methods.steps())}")
    return name


def _step_or_score(name: str) -> str:
    return name if name == methods.SCORE else _step(name)


StepName = Annotated[str, AfterValidator(_step)]
LocalPath = Annotated[Path, BeforeValidator(lambda value: Path(value).expanduser())]
T = TypeVar("T", bound="Settings")
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LONGEST_S = 1_000_000.0  # a wait that is longer has no end, as far as anyone who waits can tell


def _wait(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value <= LONGEST_S:
        shown = f"{value:g}" if isinstance(value, float) or value.bit_length() < 64 else "an integer of so many digits"
        raise ValueError(f"{shown} is no number of seconds to wait; give one from 0 to {LONGEST_S:,.0f}")
    return value


Seconds = Annotated[float, BeforeValidator(_wait)]
Dollars = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Settings(BaseModel):
    """A table of the file: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TeacherConfig(Settings):
    """A chat model that rewrites samples, and how fast and at what price it may be asked."""

    name: str = Field(description="The teacher's name: the last part of the table's own, as in [teachers.NAME].")
    provider: Literal["openai", "transformers", "recorded"] = Field(
        "openai",
        description="`openai`: any server that speaks OpenAI's chat completions (OpenAI, vLLM, SGLang, llama.cpp, Ollama); "
        "`transformers`: a chat model in this process; `recorded`: replies from a file.",
    )
    model: str = Field(
        "", description="The model's name at the server, or a Hugging Face id or folder; a recording needs none."
    )
    params: dict[str, Any] = Field(
        {},
        description="Parameters of each request, laid over temperature 0, top_p 1 and max_tokens 2048; "
        'the value "unset" takes one away. Part of the teacher\'s identity.',
    )
    base_url: str | None = Field(None, description="The server's address; without it, $OPENAI_BASE_URL.")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="The environment variable that holds the key; the key itself is never in the file.",
    )
    mode: Literal["online", "batch"] = Field(
        "online", description="Ask one by one, or by OpenAI's batch files at half the price within a day."
    )
    concurrency: PositiveInt = Field(32, description="Questions under way at once, at most.")
    rpm: PositiveInt | None = Field(None, description="Requests a minute, at most.")
    tpm: PositiveInt | None = Field(None, description="Tokens a minute, in and out, at most.")
    timeout_s: Seconds = Field(600.0, description="How long one request may take, in seconds.")
    max_reply_mb: PositiveInt = Field(
        16,
        description="How large one reply may be, unpacked, in megabytes; a larger one is not read, and its question has failed.",
    )
    max_attempts: PositiveInt = Field(5, description="Requests for one question in one run, at most.")
    wait_s: Seconds = Field(
        300.0, description="How long a server may be down before the run stops in order, in seconds."
    )
    price_in: Dollars | None = Field(
        None,
        description="USD per million tokens in (in batch mode the batch's price), 0 where they cost nothing; "
        "`--max-cost` and `budget_usd` need this price and the next.",
    )
    price_out: Dollars | None = Field(None, description="USD per million tokens out.")
    price_cached: Dollars | None = Field(
        None, description="USD per million tokens in that the server had cached; without it, they cost what others do."
    )
    file: LocalPath | None = Field(
        None, description="For `recorded`: the JSONL of replies, seen from the configuration's folder."
    )
    device: str | None = Field(
        None, description="For `transformers`: `cpu`, `cuda`, `cuda:1` …; without it, CUDA where there is some."
    )
    dtype: str | None = Field(
        None, description="For `transformers`: the precision, part of the identity; without it, the model's own."
    )

    @model_validator(mode="after")
    def _complete(self) -> "TeacherConfig":
        if self.provider == "recorded" and self.file is None:
            raise ValueError("a recorded teacher needs `file`, the JSONL of its replies")
        if self.provider != "recorded" and not self.model:
            raise ValueError("`model` is missing")
        return self

    @property
    def request_params(self) -> dict[str, Any]:
        """The parameters sent with each request; one set to "unset" is not sent at all."""
        merged = {**DEFAULT_PARAMS, **self.params}
        if "max_completion_tokens" in self.params:
            merged.pop("max_tokens", None)
        return {key: value for key, value in merged.items() if value != "unset"}

    @property
    def identity(self) -> dict[str, Any]:
        """What changes this teacher's answers: not where it is served, at which pace or price."""
        model = self.model or self.name
        if self.provider == "recorded":
            return {"provider": self.provider, "model": model}
        identity = {"provider": self.provider, "model": model, "params": _plain(self.request_params)}
        return {**identity, "dtype": self.dtype} if self.provider == "transformers" and self.dtype else identity

    @property
    def teacher_id(self) -> str:
        """The content address of the identity."""
        return teacher_id_of(self.identity)


class StudentConfig(Settings):
    """A causal LM under which variants are scored."""

    name: str = Field(description="The student's name: the last part of the table's own, as in [students.NAME].")
    model: str = Field(description="A Hugging Face id, or a folder seen from the configuration's.")
    revision: str | None = Field(None, description="A branch, tag or commit of the Hugging Face repository.")
    prompt: Literal["vicuna", "alpaca", "wizardlm", "none"] = Field(
        "vicuna", description="The template round a sample; `none` is Superfiltering's."
    )
    max_length: PositiveInt = Field(2048, description="Tokens of a sequence, at most; longer texts are cut.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="The precision of the computation.")
    device: str | None = Field(None, description="`cpu`, `cuda`, `cuda:1` …; without it, CUDA where there is some.")
    stats: Annotated[tuple[Annotated[Stat, Field(strict=False)], ...], Field(strict=False)] = Field(
        (),
        description="The statistics to compute; without it, the two of the answer for the template `none`, all four else.",
    )

    @property
    def statistics(self) -> tuple[Stat, ...]:
        """The statistics to compute: Superfiltering's template goes with those of the answer alone."""
        if self.stats:
            return self.stats
        return (Stat.A_DIRECT, Stat.A_CONDITION) if self.prompt == "none" else tuple(Stat)

    def student_id(self, revision: str) -> str:
        """Return the content address of the student, given the resolved revision (a commit, or a folder's content)."""
        return student_id_of(self.model, revision, self.prompt, self.max_length, self.dtype)


class StoreSettings(Settings):
    """Where the store is."""

    url: str = Field(
        DEFAULT_URL,
        description="`sqlite:///PATH` or `duckdb:///PATH`, seen from the configuration's folder; "
        "`--store` and $RECYCLEDB_STORE come first.",
    )


class SyncSettings(Settings):
    """What a sync brings about."""

    steps: Annotated[tuple[Annotated[str, AfterValidator(_step_or_score)], ...], Field(strict=False)] = Field(
        STEPS,
        description="Which of the steps to take. Without `compress`, an input is shown along with its instruction. "
        "The steps of an installed method are taken where they are named here.",
    )
    teacher: str | None = Field(None, description="The teacher to ask; without it, the only one there is.")
    students: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="The students to score under; without it, all there are."
    )
    budget_usd: Dollars | None = Field(
        None,
        description="The most that the store's requests may cost, of all teachers and runs together: what is recorded, and for requests "
        "whose cost is unknown (lost, under way, in batches) the most that they can cost. Nothing is asked that might pass it. "
        "`--max-cost` is a cap for one run.",
    )
    lazy: bool = Field(
        False,
        description="Reflect on the response only of the instruction that won under the first student: "
        "two calls a sample instead of three.",
    )


class Config(Settings):
    """A configuration as read, with paths resolved against the file's folder."""

    path: Path | None = None
    store: StoreSettings = StoreSettings()
    teachers: dict[str, TeacherConfig] = {}
    students: dict[str, StudentConfig] = {}
    prompts: dict[StepName, LocalPath] = Field(
        {},
        description="A file with your own wording of a step (`compress`, `reflect_instruction`, `reflect_response`, or one of an "
        "installed method).",
    )
    sync: SyncSettings = SyncSettings()

    @model_validator(mode="after")
    def _references(self) -> "Config":
        if self.sync.teacher and self.sync.teacher not in self.teachers:
            raise ValueError(f"sync.teacher is {self.sync.teacher!r}, but there is no [teachers.{self.sync.teacher}]")
        for name in self.sync.students:
            if name not in self.students:
                raise ValueError(f"sync.students has {name!r}, but there is no [students.{name}]")
        return self

    def get_teacher(self, name: str | None = None) -> TeacherConfig:
        """Return a teacher by its name in the file, or a chat model by that name at $OPENAI_BASE_URL."""
        only = next(iter(self.teachers)) if len(self.teachers) == 1 else None
        name = name or self.sync.teacher or only
        where = self.path or FILE_NAME
        if not name:
            raise ConfigError(f"no teacher: set `teacher` under [sync] in {where}, or give --teacher")
        if name in self.teachers:
            return self.teachers[name]
        if not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
            known = ", ".join(self.teachers) or "none"
            raise ConfigError(
                f"no teacher {name!r} in {where} (there: {known}); "
                "to use a model of that name at a server, set OPENAI_BASE_URL and OPENAI_API_KEY"
            )
        return TeacherConfig(name=name, model=name)

    def get_students(self, names: tuple[str, ...] = (), **overrides: Any) -> list[StudentConfig]:
        """Return students by name, or from NAME=MODEL; none given: those under [sync], else all in the file."""
        given = {key: value for key, value in overrides.items() if value is not None}
        chosen = names or self.sync.students or tuple(self.students)
        return [self._student(name, given) for name in chosen]

    def _student(self, name: str, given: Mapping[str, Any]) -> StudentConfig:
        name, separator, model = name.partition("=")
        if separator and not (name and model):
            raise ConfigError(f"--student {name}={model}: give NAME=HF_ID_OR_PATH")
        if not separator and name not in self.students:
            known = ", ".join(self.students) or "none"
            where = self.path or FILE_NAME
            raise ConfigError(f"no student {name!r} in {where} (there: {known}); or give --student {name}=MODEL")
        base = self.students[name].model_dump() if name in self.students else {"name": name}
        values = {**base, **given, **({"model": model} if separator else {})}
        return _checked(StudentConfig, values, f"--student {name}")


def teacher_id_of(identity: Mapping[str, Any]) -> str:
    """Return the content address of what changes a teacher's answers."""
    return content_id("teacher", identity, length=IDENTITY_LENGTH)


def student_id_of(model: str, revision: str, prompt: str, max_length: int, dtype: str) -> str:
    """Return the content address of what changes a student's numbers; a folder is known by its content, not by its name."""
    named = "" if revision.startswith("sha256:") else model
    return content_id("student", named, revision, prompt, max_length, dtype, length=IDENTITY_LENGTH)


def find_file(start: Path | None = None) -> Path | None:
    """Return the nearest recycledb.toml, in this folder or a parent."""
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / FILE_NAME).is_file():
            return candidate / FILE_NAME
    return None


def load(path: Path | None = None) -> Config:
    """Read a configuration file, or the nearest, or none: then everything has its default."""
    path = path or find_file()
    if path is None:
        return Config()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no UTF-8, no TOML, or a number of thousands of digits
        raise ConfigError(f"{path}: {error}") from error
    return parse(data, path)


def parse(data: Mapping[str, Any], path: Path) -> Config:
    """Check a configuration's tables and return it; ConfigError names the key that is wrong."""
    values: dict[str, Any] = {**data, "path": path}
    for table in ("teachers", "students"):
        rows = values.get(table, {})
        if isinstance(rows, dict):
            values[table] = {name: _named(name, row, path.parent) for name, row in rows.items()}
    config = _checked(Config, values, str(path))
    prompts = {step: path.parent / file for step, file in config.prompts.items()}
    store = StoreSettings(url=_resolve_url(config.store.url, path.parent))
    return config.model_copy(update={"prompts": prompts, "store": store})


def _named(name: str, row: Any, folder: Path) -> Any:
    """Give a table its own name, and its local files and folders their full paths."""
    if not isinstance(row, dict):
        return row
    values = {**row, "name": name}
    if isinstance(row.get("file"), str):
        values["file"] = folder / Path(row["file"]).expanduser()
    if isinstance(row.get("model"), str):
        model = folder / Path(row["model"]).expanduser()
        values["model"] = str(model.resolve()) if model.is_dir() else row["model"]
    return values


def _checked(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such setting"
        raise ConfigError(f"{where}: {place}: {message}" if place else f"{where}: {message}") from error


def _resolve_url(url: str, folder: Path) -> str:
    scheme, separator, file = url.partition(":///")
    if not separator or scheme not in ("sqlite", "duckdb") or file.startswith(("/", "~", ":")):
        return url
    return f"{scheme}:///{folder / file}"


def _plain(value: Any) -> Any:
    """Return a parameter so that 0 and 0.0, which ask for the same, have one identity."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
