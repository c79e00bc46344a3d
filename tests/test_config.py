"""recycledb.toml: what it may say, what a mistake in it is told, and what makes two teachers or students the same."""

import os
from pathlib import Path
from typing import Any

import pytest

from recycledb.cli.stores import TEMPLATE
from recycledb.config import DEFAULT_URL, Config, StudentConfig, TeacherConfig, find_file, load, parse
from recycledb.errors import ConfigError
from recycledb.methods.ifd import Stat

FULL = """
[store]
url = "sqlite:///data/recycle.db"
[teachers.gpt]
model = "gpt-4o-mini"
[teachers.replay]
provider = "recorded"
file = "replies.jsonl"
[students.7b]
model = "org/7b"
dtype = "bfloat16"
[students.own]
model = "models/own"
[prompts]
reflect_response = "mine.txt"
[sync]
teacher = "gpt"
students = ["7b"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    (tmp_path / "models" / "own").mkdir(parents=True)
    path = tmp_path / "recycledb.toml"
    path.write_text(FULL)
    return path


def test_without_a_file_everything_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_file() is None
    assert load() == Config() and load().store.url == DEFAULT_URL == "sqlite:///recycle.db"


def test_the_nearest_file_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = file.parent / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert find_file() == file and load().path == file
    (inner.parent / "recycledb.toml").write_text("")
    assert find_file() == inner.parent / "recycledb.toml"
    assert find_file(file.parent) == file


def test_paths_are_seen_from_the_file_s_folder(file: Path) -> None:
    config, folder = load(file), file.parent
    assert config.store.url == f"sqlite:///{folder}/data/recycle.db"
    assert config.teachers["replay"].file == folder / "replies.jsonl"
    assert config.students["own"].model == str(folder / "models" / "own")
    assert config.students["7b"].model == "org/7b"  # no such folder: a Hugging Face id
    assert list(config.prompts.values()) == [folder / "mine.txt"]


@pytest.mark.parametrize("url", ["sqlite:////abs/x.db", "sqlite:///~/x.db", "postgresql+psycopg://h/d", "nonsense"])
def test_urls_that_name_no_relative_file_stay(url: str, tmp_path: Path) -> None:
    assert parse({"store": {"url": url}}, tmp_path / "recycledb.toml").store.url == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stor]\nurl = ''", "stor: unknown key"),
        ("[teachers.gpt]\nmodel = 'x'\napi_key = 'sk-secret'", "teachers.gpt.api_key: unknown key"),
        ("[teachers.gpt]\nmodel = 'x'\nrpm = '500'", "teachers.gpt.rpm: Input should be a valid integer"),
        ("[teachers.gpt]\nmodel = 'x'\nrpm = 0", "teachers.gpt.rpm: Input should be greater than 0"),
        *(
            (f"[teachers.gpt]\nmodel = 'x'\n{key} = {value}", f"teachers.gpt.{key}: {shown} is out of range")
            for key in ("timeout_s", "wait_s")
            for value, shown in (
                ("inf", "inf"),
                ("nan", "nan"),
                ("-1", "-1"),
                ("1e300", "1e+300"),
                ("9" * 400, "an integer of that many digits"),
            )
        ),
        ("[teachers.gpt]\nmodel = 'x'\ntimeout_s = " + "9" * 5000, "integer string conversion"),
        ("[teachers.gpt]\nmodel = 'x'\nprice_in = inf", "teachers.gpt.price_in: Input should be a finite number"),
        ("[teachers.gpt]\nmodel = 'x'\nprovider = 'litellm'", "teachers.gpt.provider: Input should be 'openai'"),
        ("[teachers.gpt]\nprovider = 'openai'", "teachers.gpt: `model` is missing"),
        ("[teachers.r]\nprovider = 'recorded'", "teachers.r: a recorded teacher needs `file`"),
        ("[teachers]\ngpt = 'gpt-4o'", "teachers.gpt: "),
        ("[students.7b]\nprompt = 'vicuna'", "students.7b.model: Field required"),
        ("[students.7b]\nmodel = 'x'\nprompt = 'chatml'", "students.7b.prompt: Input should be 'vicuna'"),
        ("[students.7b]\nmodel = 'x'\ntemplate = 'chatml'", "students.7b.template: Input should be 'vicuna'"),
        (
            "[students.7b]\nmodel = 'x'\ntemplate = 'none'\nprompt = 'none'",
            "students.7b: `prompt` and `template` are the same key",
        ),
        ("[students.7b]\nmodel = 'x'\nmax_length = 0.5", "students.7b.max_length: "),
        ("[students.7b]\nmodel = 'x'\nstats = ['A']", "students.7b.stats.0: "),
        ("[prompts]\nrewrite = 'x.txt'", "prompts.rewrite: "),
        (
            "[sync]\nsteps = ['reflect']",
            "sync.steps.0: unknown step 'reflect' (did you mean 'reflect_response'?): use one of compress, ",
        ),
        ("[sync]\nteacher = 'gpt'", "sync.teacher is 'gpt', but there is no [teachers.gpt]"),
        ("[sync]\nstudents = ['7b']", "sync.students has '7b', but there is no [students.7b]"),
        ("[sync\n", "line 1"),
    ],
)
def test_a_mistake_is_told_by_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recycledb.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    told = str(raised.value)
    assert str(path) in told and message in told and "\n" not in told and "sk-secret" not in told


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "recycledb.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="utf-8"):
        load(path)


def test_the_template_of_init_is_valid_as_it_stands_and_with_every_line_in(tmp_path: Path) -> None:
    text = TEMPLATE.format(url="sqlite:///x.db")
    path = tmp_path / "recycledb.toml"
    path.write_text(text)
    assert load(path).sync.teacher == "gpt"
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and ("=" in line or line[2] == "[") else line
        for line in text.splitlines()
    ]
    path.write_text("\n".join(line for line in lines if not line.startswith(("The state that", "Secrets"))))
    config = load(path)
    assert config.sync.students == ("7b",) and config.prompts and config.teachers["gpt"].rpm


# --- identities -----------------------------------------------------------------------------------


def teacher(**settings: Any) -> str:
    return TeacherConfig.model_validate({"name": "t", "model": "m", **settings}).teacher_id


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "http://elsewhere/v1"}, {"rpm": 5}, {"tpm": 5}, {"concurrency": 1}, {"timeout_s": 1.0},
        {"max_attempts": 1}, {"wait_s": 0.0}, {"price_in": 1.0}, {"price_out": 1.0}, {"mode": "batch"},
        {"api_key_env": "OTHER"}, {"device": "cpu"}, {"name": "other"}, {"params": {"temperature": 0}},
        {"params": {"temperature": 0.0}}, {"params": {"max_tokens": 2048, "top_p": 1.0}}, {"params": {"max_tokens": 1024}},
        {"params": {"max_completion_tokens": 512}}, {"params": {"max_tokens": "unset"}},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_no_answer_makes_no_other_teacher(settings: dict[str, Any]) -> None:
    assert teacher(**settings) == teacher()


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "other"}, {"provider": "transformers"}, {"params": {"temperature": 0.7}},
        {"params": {"temperature": "unset"}}, {"params": {"seed": 1}}, {"params": {"extra_body": {"top_k": 1}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_an_answer_makes_another_teacher(settings: dict[str, Any]) -> None:
    assert teacher(**settings) != teacher()


def test_a_local_teacher_s_precision_is_part_of_it() -> None:
    local = {"provider": "transformers"}
    assert teacher(**local, dtype="bfloat16") != teacher(**local) == teacher(**local, device="cuda")
    assert teacher(dtype="bfloat16") == teacher()  # a server does not hear of it


def test_a_recording_is_known_by_what_it_records(tmp_path: Path) -> None:
    one, two = ({"provider": "recorded", "file": tmp_path / name} for name in ("a.jsonl", "b.jsonl"))
    assert teacher(**one) == teacher(**two) != teacher(**one, model="gpt-4o")


def test_parameters_of_a_request() -> None:
    settings = {"name": "t", "model": "m", "params": {"temperature": "unset", "max_completion_tokens": 100}}
    assert TeacherConfig.model_validate(settings).request_params == {"top_p": 1, "max_completion_tokens": 100}


def student(**settings: Any) -> StudentConfig:
    return StudentConfig.model_validate({"name": "s", "model": "org/m", **settings})


def test_what_makes_a_student_another() -> None:
    same = student().student_id("abc")
    for settings in ({"name": "t"}, {"device": "cuda"}, {"stats": ["A_direct"]}):
        assert student(**settings).student_id("abc") == same
    for settings in ({"model": "org/n"}, {"prompt": "alpaca"}, {"max_length": 1024}, {"dtype": "float16"}):
        assert student(**settings).student_id("abc") != same
    assert student().student_id("abd") != same


def test_template_is_another_name_of_a_student_s_prompt() -> None:
    assert student(template="alpaca") == student(prompt="alpaca")
    assert student(template="alpaca").student_id("abc") == student(prompt="alpaca").student_id("abc")
    config = Config(students={"s": student(prompt="alpaca", dtype="bfloat16")})
    (given,) = config.get_students(("s",), template="none")
    assert given == student(prompt="none", dtype="bfloat16")
    with pytest.raises(ConfigError, match="--student s: template: Input should be 'vicuna'"):
        config.get_students(("s",), template="chatml")


def test_a_local_student_is_its_content_wherever_it_lies() -> None:
    assert student(model="/a").student_id("sha256:1") == student(model="/b").student_id("sha256:1")
    assert student(model="/a").student_id("sha256:1") != student(model="/a").student_id("sha256:2")


def test_statistics_of_a_student() -> None:
    assert student().statistics == tuple(Stat)
    assert student(prompt="none").statistics == (Stat.A_DIRECT, Stat.A_CONDITION)
    assert student(prompt="none", stats=["Q_direct"]).statistics == (Stat.Q_DIRECT,)


# --- by name --------------------------------------------------------------------------------------


def test_teachers_by_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(file)
    assert config.get_teacher().name == "gpt" and config.get_teacher("replay").provider == "recorded"
    with pytest.raises(ConfigError, match=r"no teacher 'other' .*it has: gpt, replay.*OPENAI_BASE_URL"):
        config.get_teacher("other")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert config.get_teacher("other").model == "other"
    with pytest.raises(ConfigError, match="no teacher: set `teacher` under"):
        Config().get_teacher()


def test_students_by_name(file: Path) -> None:
    config = load(file)
    assert [one.name for one in config.get_students()] == ["7b"]
    assert [one.name for one in config.get_students(("own", "7b"))] == ["own", "7b"]
    (given,) = config.get_students(("new=org/new",), prompt="none", max_length=1024, dtype=None)
    assert (given.name, given.model, given.prompt, given.max_length) == ("new", "org/new", "none", 1024)
    (changed,) = config.get_students(("7b=org/other",))
    assert (changed.model, changed.dtype) == ("org/other", "bfloat16")
    with pytest.raises(ConfigError, match=r"no student '13b' .*it has: 7b, own.*--student 13b=MODEL"):
        config.get_students(("13b",))
    for wrong in ("=org/x", "x="):
        with pytest.raises(ConfigError, match="NAME=HF_ID_OR_PATH"):
            config.get_students((wrong,))
    with pytest.raises(ConfigError, match=r"--student 7b: dtype: "):
        config.get_students(("7b",), dtype="int8")
