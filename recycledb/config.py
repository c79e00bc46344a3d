"""recycledb.toml: the state that sync brings about, and the identities of teachers and students.

Invariant: an identity contains everything that changes a reply or a number, and nothing else: after a change of server, price or
folder, nothing is paid for or computed twice.
Secrets are never read from the file.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from recycledb import methods
from recycledb.clusters import AUTO, NO_CLUSTER, ClusterSettings
from recycledb.errors import ConfigError
from recycledb.methods.ifd import Stat
from recycledb.options import (
    AugmentationConfig,
    JudgingConfig,
    Listed,
    MeasureConfig,
    Names,
    Seconds,
    Settings,
    plain,
    with_files,
)
from recycledb.schema import DEFAULT_LIMIT, IDENTITY_LENGTH, content_id, limit_of, teacher_id_of, without_limit
from recycledb.suggestions import did_you_mean, explained, no_table

FILE_NAME = "recycledb.toml"
ENCODER = "encoder"  # in the place of a student's template
DEFAULT_URL = "sqlite:///recycle.db"
STEPS = ("compress", "reflect_instruction", "reflect_response", "score")
DEFAULT_PARAMS: Mapping[str, Any] = {"temperature": 0, "top_p": 1, "max_tokens": DEFAULT_LIMIT}


def _step(name: str) -> str:
    return _one_of(name, _own_steps())


def _step_or_score(name: str) -> str:
    return _one_of(name, (*_own_steps(), methods.SCORE))


def _own_steps() -> tuple[str, ...]:
    """Return the steps that [sync] and [prompts] can name; those without inputs belong to measures and judgings."""
    return tuple(step.name for step in methods.steps().values() if step.inputs)


def _one_of(name: str, steps: tuple[str, ...]) -> str:
    if name not in steps:
        raise ValueError(f"unknown step {name!r}{did_you_mean(name, steps)}: use one of {', '.join(steps)}")
    return name


StepName = Annotated[str, AfterValidator(_step)]
LocalPath = Annotated[Path, BeforeValidator(lambda value: Path(value).expanduser())]
T = TypeVar("T", bound="Settings")
Dollars = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class TeacherConfig(Settings):
    """A chat model that rewrites samples, with its rate limits and prices."""

    name: str = Field(description="The teacher's name: NAME in [teachers.NAME].")
    provider: Literal["openai", "transformers", "recorded"] = Field(
        "openai",
        description="`openai`: any server with the OpenAI chat completions API (OpenAI, vLLM, SGLang, llama.cpp, Ollama); "
        "`transformers`: a chat model run in this process; `recorded`: replies from a file.",
    )
    model: str = Field(
        "", description="The model's name at the server, or a Hugging Face id or folder; not needed for `recorded`."
    )
    params: dict[str, Any] = Field(
        {},
        description="Parameters of each request, added to the defaults temperature 0, top_p 1 and max_tokens 2048; "
        'the value "unset" removes a default. Part of the teacher\'s identity, but for the limit (max_tokens or '
        "max_completion_tokens): when it rises, replies that were cut off are asked for again, and no other.",
    )
    base_url: str | None = Field(None, description="The server's URL. Default: $OPENAI_BASE_URL.")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="The environment variable that contains the API key; the key itself is never in this file.",
    )
    mode: Literal["online", "batch"] = Field(
        "online",
        description="`online`: one request per question; `batch`: OpenAI's batch API, at half the price, with replies within a day.",
    )
    concurrency: PositiveInt = Field(32, description="Maximum number of requests in flight.")
    rpm: PositiveInt | None = Field(None, description="Maximum number of requests per minute.")
    tpm: PositiveInt | None = Field(None, description="Maximum number of tokens per minute, prompt and completion.")
    timeout_s: Seconds = Field(600.0, description="Timeout of one request, in seconds.")
    max_reply_mb: PositiveInt = Field(
        16,
        description="Largest reply accepted, unpacked, in megabytes; a larger one is not read and its question fails permanently.",
    )
    max_attempts: PositiveInt = Field(5, description="Maximum number of requests for one question in one run.")
    wait_s: Seconds = Field(
        300.0, description="Seconds that a server may be down, or ask to wait, before the run stops."
    )
    price_in: Dollars | None = Field(
        None,
        description="USD per million prompt tokens (in batch mode the batch price); 0 for a free model. "
        "`--max-cost` and `budget_usd` need this price and the next.",
    )
    price_out: Dollars | None = Field(None, description="USD per million completion tokens.")
    price_cached: Dollars | None = Field(
        None, description="USD per million prompt tokens that the server had cached. Default: `price_in`."
    )
    file: LocalPath | None = Field(
        None, description="For `recorded`: the JSONL file of replies; relative to the configuration's folder."
    )
    device: str | None = Field(
        None, description="For `transformers`: `cpu`, `cuda`, `cuda:1` … Default: CUDA if available."
    )
    dtype: str | None = Field(
        None, description="For `transformers`: the precision. Default: the model's own. Part of the teacher's identity."
    )

    @model_validator(mode="after")
    def _complete(self) -> "TeacherConfig":
        if self.provider == "recorded" and self.file is None:
            raise ValueError("a recorded teacher needs `file`, the JSONL file of its replies")
        if self.provider != "recorded" and not self.model:
            raise ValueError("`model` is missing")
        return self

    @property
    def request_params(self) -> dict[str, Any]:
        """The parameters sent with each request, without those set to "unset"."""
        merged = {**DEFAULT_PARAMS, **self.params}
        if "max_completion_tokens" in self.params:
            merged.pop("max_tokens", None)
        return {key: value for key, value in merged.items() if value != "unset"}

    @property
    def sent_params(self) -> dict[str, Any]:
        """The parameters as a server gets them: `extra_body` is for its own, and is sent as its contents."""
        params = self.request_params
        own = params.pop("extra_body", {})
        return {**params, **own}

    @property
    def configured(self) -> dict[str, Any]:
        """The provider, the model and what is sent with each request; the identity, and the limit on a reply's length."""
        model = self.model or self.name
        if self.provider == "recorded":
            return {"provider": self.provider, "model": model}
        found = {"provider": self.provider, "model": model, "params": plain(self.request_params)}
        return {**found, "dtype": self.dtype} if self.provider == "transformers" and self.dtype else found

    @property
    def identity(self) -> dict[str, Any]:
        """What changes this teacher's replies: not its server, rate limits or prices, nor the limit on a reply's length."""
        return without_limit(self.configured)

    @property
    def limit(self) -> int:
        """The longest reply that a request allows, in tokens; 0 for no limit."""
        return limit_of(self.configured)

    @property
    def teacher_id(self) -> str:
        """The content address of the identity."""
        return teacher_id_of(self.identity)


class StudentConfig(Settings):
    """A causal LM under which variants are scored."""

    name: str = Field(description="The student's name: NAME in [students.NAME].")
    model: str = Field(description="A Hugging Face id, or a folder relative to the configuration's.")
    revision: str | None = Field(None, description="A branch, tag or commit of the Hugging Face repository.")
    prompt: Literal["vicuna", "alpaca", "wizardlm", "none"] = Field(
        "vicuna",
        validation_alias=AliasChoices("prompt", "template"),
        description="The template around a sample; `none` is Superfiltering's. `template` is another name for this key.",
    )
    max_length: PositiveInt = Field(
        2048, description="Maximum number of tokens of a sequence; longer ones are truncated."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="The precision of the computation.")
    device: str | None = Field(None, description="`cpu`, `cuda`, `cuda:1` … Default: CUDA if available.")
    stats: Annotated[tuple[Annotated[Stat, Field(strict=False)], ...] | None, Field(strict=False), Listed] = Field(
        None,
        description="The statistics to compute. Default: all four; for the template `none` only those of the answer. "
        "An empty list is for a student that is used by measures only.",
    )

    encoder: bool = Field(
        False,
        description="Whether it is a sentence encoder (such as all-MiniLM-L6-v2): it gives vectors only, for measures of the method "
        "`embedding`. Its template is `none`.",
    )

    @model_validator(mode="after")
    def _no_losses(self) -> "StudentConfig":
        if self.encoder and self.stats:
            raise ValueError("an encoder has no statistics: remove `stats`, or `encoder`")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_template(cls, values: Any) -> Any:
        if isinstance(values, dict) and "prompt" in values and "template" in values:
            raise ValueError("`prompt` and `template` are the same key; give only one")
        return values

    @property
    def statistics(self) -> tuple[Stat, ...]:
        """The statistics to compute; with Superfiltering's template those of the answer only."""
        if self.encoder:
            return ()
        if self.stats is not None:
            return self.stats
        return (Stat.A_DIRECT, Stat.A_CONDITION) if self.prompt == "none" else tuple(Stat)

    def student_id(self, revision: str) -> str:
        """Return the content address of the student; `revision` is a commit, or the hash of a folder's content."""
        return student_id_of(self.model, revision, self.recorded_template, self.max_length, self.dtype)

    @property
    def recorded_template(self) -> str:
        """The template as it is stored: `encoder` for a sentence encoder, whose numbers are of another sort."""
        return ENCODER if self.encoder else self.prompt


class StoreSettings(Settings):
    """Where the store is."""

    url: str = Field(
        DEFAULT_URL,
        description="`sqlite:///PATH` or `duckdb:///PATH`, relative to the configuration's folder, or `postgresql://HOST/DATABASE` "
        "without a password (use ~/.pgpass, $PGPASSWORD or $PGSERVICE); `--store` and $RECYCLEDB_STORE override it.",
    )
    wait_s: float = Field(
        60.0,
        ge=0,
        description="How long, in seconds, a command tries again while the PostgreSQL server is away; then it ends in order.",
    )


class SyncSettings(Settings):
    """What a sync adds to the store."""

    steps: Annotated[tuple[Annotated[str, AfterValidator(_step_or_score)], ...], Field(strict=False), Listed] = Field(
        STEPS,
        description="The steps to run; steps of installed methods run only if listed. Without `compress`, the teacher is shown "
        "the input beside the instruction.",
    )
    teacher: str | None = Field(None, description="The teacher to ask. Default: the only one in this file.")
    students: Names = Field((), description="The students to score with. Default: all in this file.")
    budget_usd: Dollars | None = Field(
        None,
        description="Limit for the cost of all requests of the store, over all teachers and runs. A request of unknown cost (lost, in "
        "flight, in a batch) counts as the most it can cost, and no question is asked that could exceed the limit. "
        "`--max-cost` is a limit for one run.",
    )
    lazy: bool = Field(
        False,
        description="Reflect on the response only for the instruction that the first student selects: "
        "two calls per sample instead of three.",
    )


class Config(Settings):
    """A configuration as read, with paths resolved against the file's folder."""

    path: Path | None = None
    store: StoreSettings = StoreSettings()
    teachers: dict[str, TeacherConfig] = Field({})
    students: dict[str, StudentConfig] = Field({})
    measures: dict[str, MeasureConfig] = Field({})
    augmentations: dict[str, AugmentationConfig] = Field({})
    judgings: dict[str, JudgingConfig] = Field({})
    prompts: dict[StepName, LocalPath] = Field(
        {},
        description="For each step (`compress`, `reflect_instruction`, `reflect_response`, or one of an installed method) a file with "
        "your own prompt.",
    )
    sync: SyncSettings = SyncSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _references(self) -> "Config":
        if self.sync.teacher and self.sync.teacher not in self.teachers:
            raise ValueError(f"sync.teacher is {no_table('teachers', self.sync.teacher, self.teachers)}")
        lists = {"sync.students": self.sync.students}
        lists |= {f"measures.{each.name}.students": each.students for each in self.measures.values()}
        for place, names in lists.items():
            for name in names:
                if name not in self.students:
                    raise ValueError(f"{place} has {no_table('students', name, self.students)}")
        for augmentation in self.augmentations.values():
            for key, name in augmentation.tokenizers.items():
                if name not in self.students:
                    raise ValueError(
                        f"augmentations.{augmentation.name}.{key} is {no_table('students', name, self.students)}"
                    )
        asking = {f"measures.{name}": each.teacher for name, each in self.measures.items()}
        asking |= {f"judgings.{name}": each.teacher for name, each in self.judgings.items()}
        for table, teacher in asking.items():
            if teacher is not None and teacher not in self.teachers:
                raise ValueError(f"{table}.teacher has {no_table('teachers', teacher, self.teachers)}")
        return self

    def get_cluster(self, ray: str | bool | None = None, replicas: int | str | None = None) -> ClusterSettings:
        """Return the settings of [cluster], with another address (True is "auto", False "none") or number of replicas where given."""
        named = (AUTO if ray else NO_CLUSTER) if isinstance(ray, bool) else ray
        given = {"ray": named, "replicas": replicas}
        values = {**self.cluster.model_dump(), **{key: value for key, value in given.items() if value is not None}}
        found = _checked(ClusterSettings, values, "sync")
        if replicas is not None and found.ray == NO_CLUSTER:
            raise ConfigError("--replicas is for a Ray cluster: give --ray too, or set `ray` under [cluster]")
        return found

    def get_teacher(self, name: str | None = None) -> TeacherConfig:
        """Return a teacher by its name in the file, else a chat model of that name at $OPENAI_BASE_URL."""
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
                f"no teacher {name!r} in {where}{did_you_mean(name, self.teachers)}; it has: {known}; "
                "to use a model of that name at a server, set OPENAI_BASE_URL and OPENAI_API_KEY"
            )
        return TeacherConfig(name=name, model=name)

    def get_students(self, names: tuple[str, ...] = (), **overrides: Any) -> list[StudentConfig]:
        """Return students by name or NAME=MODEL; without names those under [sync], else all in the file."""
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
            raise ConfigError(
                f"no student {name!r} in {where}{did_you_mean(name, self.students)}; it has: {known}; "
                f"for a new one give --student {name}=MODEL"
            )
        base = self.students[name].model_dump() if name in self.students else {"name": name}
        if "template" in given:  # the other name of `prompt`
            base.pop("prompt", None)
        values = {**base, **given, **({"model": model} if separator else {})}
        return _checked(StudentConfig, values, f"--student {name}")


def student_id_of(model: str, revision: str, prompt: str, max_length: int, dtype: str) -> str:
    """Return the content address of what changes a student's numbers; a folder counts by its content, not its path."""
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
    """Read a configuration file, by default the nearest; return the defaults if there is none."""
    path = path or find_file()
    if path is None:
        return Config()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # not UTF-8, not TOML, or an integer of thousands of digits
        raise ConfigError(f"{path}: {error}") from error
    return parse(data, path)


def parse(data: Mapping[str, Any], path: Path) -> Config:
    """Check a configuration's tables and return it; ConfigError names the key that is wrong."""
    values: dict[str, Any] = {**data, "path": path}
    for table in ("teachers", "students", "measures", "augmentations", "judgings"):
        rows = values.get(table, {})
        if isinstance(rows, dict):
            values[table] = {name: _named(name, row, path.parent) for name, row in rows.items()}
    for table in ("measures", "augmentations", "judgings"):
        for name, row in list(values.get(table, {}).items()):
            if isinstance(row, dict):
                if table != "judgings":
                    row.setdefault("method", name)
                values[table][name] = with_files(row, table, path.parent)
    config = _checked(Config, values, str(path))
    prompts = {step: path.parent / file for step, file in config.prompts.items()}
    if _PASSWORD.match(config.store.url):
        raise ConfigError(
            f"{path}: store.url: a password does not belong in this file; put it in ~/.pgpass or $PGPASSWORD, "
            "or the URL in $RECYCLEDB_STORE"
        )
    store = config.store.model_copy(update={"url": _resolve_url(config.store.url, path.parent)})
    return config.model_copy(update={"prompts": prompts, "store": store})


def _named(name: str, row: Any, folder: Path) -> Any:
    """Add the table's name to its values, and resolve its files and folders."""
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
        message = explained(cls, first)
        raise ConfigError(f"{where}: {place}: {message}" if place else f"{where}: {message}") from error


_PASSWORD = re.compile(r"[a-z+0-9]+://(?:[^/@?]*:[^/@?]*@|[^?]*\?(?:[^#]*&)?password=)")


def _resolve_url(url: str, folder: Path) -> str:
    scheme, separator, file = url.partition(":///")
    if not separator or scheme not in ("sqlite", "duckdb") or file.startswith(("/", "~", ":")):
        return url
    return f"{scheme}:///{folder / file}"
