"""Formats: any valid text survives a round trip, bad rows do not spoil the rest, and bad files are one clear error."""

import gzip
import hashlib
import json
import math
import os
import random
import tracemalloc
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recycledb.errors import FormatError, WriteError
from recycledb.formats import OUT_FORMATS, How, Row, dumps_alpaca, is_placeholder, read, read_scores, write
from recycledb.formats.containers import Source
from recycledb.schema import Texts

SUFFIXES = ("", ".gz", ".zst")
# Each format, and each compression of a stream and of a Parquet file, which is unpacked first: one factor at a time.
FORMS = [
    ("alpaca", ""),
    ("sharegpt", ""),
    ("jsonl", ""),
    ("parquet", ""),
    ("alpaca", ".gz"),
    ("jsonl", ".zst"),
    ("parquet", ".gz"),
]
GOOD = {"instruction": "Say hello.", "input": "", "output": "Hello!"}

any_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
any_rows = st.lists(
    st.builds(
        lambda *texts: dict(zip(Texts._fields, texts, strict=True)),
        any_text,
        any_text.filter(lambda text: not is_placeholder(text)),
        any_text,
    ),
    min_size=1,
    max_size=5,
)
json_scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | any_text
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=12,
)
in_one_folder = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # for each container and compression: writing waits for the disk


def saved(folder: Path, content: Any, name: str = "data.json") -> Path:
    """Write bytes as they are, text as UTF-8 and anything else as JSON."""
    path = folder / name
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows_of(path: Path, format: str = "auto") -> list[Row]:
    return list(read(path, format))


def texts_of(path: Path, format: str = "auto") -> list[Texts | None]:
    return [row.texts for row in read(path, format)]


def refusal(path: Path, format: str = "auto") -> str:
    """Return the message with which the file is refused, having made sure that it is one line and names the file."""
    with pytest.raises(FormatError) as caught:
        rows_of(path, format)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.default_cases("alpaca-.gz", "parquet-.gz")
@pytest.mark.parametrize(("format", "suffix"), [form for form in FORMS if form[0] != "sharegpt"])
@in_one_folder
@given(rows=any_rows)
@example(rows=[{"instruction": "\ufeff\u2028\x7f\r\n", "input": '"}],', "output": "🙂\\"}])
def test_written_texts_are_read_back(tmp_path: Path, format: str, suffix: str, rows: list[dict[str, str]]) -> None:
    path = tmp_path / f"data{suffix}"
    digest = write(path, rows, format)
    reading = read(path)
    assert [row.texts for row in reading] == [Texts(**row) for row in rows]
    assert reading.sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reading.container == {"alpaca": "json"}.get(format, format)
    assert reading.compression == {"": "none", ".gz": "gzip", ".zst": "zstd"}[suffix]
    assert (reading.format, reading.rows, reading.rejected, reading.cut) == ("alpaca", len(rows), 0, 0)


@in_one_folder
@given(rows=any_rows)
def test_written_conversations_are_read_back(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "data.json"
    write(path, rows, "sharegpt")
    reading = read(path)
    asked = [row["instruction"] + ("\n" if row["instruction"] and row["input"] else "") + row["input"] for row in rows]
    assert [row.texts for row in reading] == [Texts(a, "", row["output"]) for a, row in zip(asked, rows, strict=True)]
    assert reading.format == "sharegpt"


@pytest.mark.long
@settings(in_one_folder, max_examples=100)
@given(values=st.lists(json_values, max_size=6), indent=st.none() | st.integers(0, 3), ascii_only=st.booleans())
def test_json_lists_are_cut_as_a_parser_cuts_them(
    tmp_path: Path, values: list[Any], indent: int | None, ascii_only: bool
) -> None:
    path = saved(tmp_path, json.dumps(values, indent=indent, ensure_ascii=ascii_only))
    assert list(Source(path)) == values


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_rows_across_the_borders_of_what_is_read_at_once(tmp_path: Path, name: str) -> None:
    chance = random.Random(7)
    pieces = ['"', "\\", "}", "{", "]", ",", "\n", "é", "🙂", "a" * 997, "}, {" * 50]
    rows = [
        {"instruction": "".join(chance.choices(pieces, k=chance.randrange(2000))), "output": f"{n}", "n": [{"m": n}]}
        for n in range(30)
    ]
    text = json.dumps(rows) if name == "data.json" else "\r\n".join(json.dumps(row) for row in rows)
    found = rows_of(saved(tmp_path, text, name))
    assert [row.texts for row in found] == [Texts(str(row["instruction"]), "", str(row["output"])) for row in rows]
    assert [row.extra for row in found] == [{"n": [{"m": n}]} for n in range(30)]


@pytest.mark.long
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_rows_of_many_megabytes(tmp_path: Path, name: str) -> None:
    long = {"instruction": "x\n" * 5_000_000, "output": '\\"}' * 1_000_000}
    rows = [GOOD, long, GOOD]
    text = json.dumps(rows) if name == "data.json" else "\n".join(map(json.dumps, rows))
    assert [len(row.texts.instruction) for row in rows_of(saved(tmp_path, text, name)) if row.texts] == [
        10,
        10_000_000,
        10,
    ]


# --- damage ---------------------------------------------------------------------------------------


EDGE, BETWEEN = 24, 40


def cuts(content: bytes, everywhere: bool) -> Iterator[bytes]:
    """Yield what is left after cuts near both ends, where the marks of a format are, and at some places between, or everywhere."""
    lengths = range(len(content))
    if everywhere:
        return (content[:length] for length in lengths)
    between = lengths[EDGE:-EDGE]
    chosen = random.Random(len(content)).sample(between, min(len(between), BETWEEN))
    return (content[:length] for length in sorted({*lengths[:EDGE], *chosen, *lengths[-EDGE:]}))


@pytest.mark.parametrize(("format", "suffix"), FORMS)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, format: str, suffix: str) -> None:
    require_whole(tmp_path, format, suffix)


@pytest.mark.slow  # Parquet files of thousands of bytes, each of which is written and read again
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("format", OUT_FORMATS)
def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, format: str, suffix: str) -> None:
    require_whole(tmp_path, format, suffix, everywhere=True)


def require_whole(tmp_path: Path, format: str, suffix: str, *, everywhere: bool = False) -> None:
    """Cut a file; fail where what is left is read as if it were whole."""
    rows = [{**GOOD, "output": f"{n} \\ é"} for n in range(2)]
    path = tmp_path / f"data{suffix}"
    write(path, rows, format)
    whole = texts_of(path)
    for cut in cuts(path.read_bytes(), everywhere):
        path.write_bytes(cut)
        try:
            found = texts_of(path)
        except FormatError:
            continue
        if format == "jsonl" and not suffix:
            assert cut.endswith(b"}") or cut.endswith(b"\n")  # between lines nothing tells that more was to come
            assert found == whole[: len(found)]
        else:
            assert found == whole  # only the newline at the end is gone


@pytest.mark.parametrize("packed", [gzip.compress, zstandard.compress])
def test_compressed_parts_that_follow_each_other_are_one_file(tmp_path: Path, packed: Any) -> None:
    lines = [(json.dumps({**GOOD, "output": str(n)}) + "\n").encode() for n in range(3)]
    path = saved(tmp_path, b"".join(map(packed, lines)))
    assert [texts.output for texts in texts_of(path) if texts] == ["0", "1", "2"]


@settings(in_one_folder, max_examples=100)
@given(content=st.binary(max_size=200))
@example(content=b"[]")
@example(content=b"{}")
@example(content=b"null")
@example(content=b"[" * 100_000)
@example(content=b'{"a":' * 100_000)
@example(content=b"\x28\xb5\x2f\xfd")
@example(content=b"\x1f\x8b")
@example(content=b"PAR1PAR1")
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    refusal(saved(tmp_path, content, "data.json"))


@pytest.mark.parametrize(("format", "suffix"), FORMS)
@in_one_folder
@given(data=st.data())
def test_a_changed_byte_is_refused_or_read_but_never_a_crash(
    tmp_path: Path, format: str, suffix: str, data: st.DataObject
) -> None:
    path = tmp_path / f"data{suffix}"
    write(path, [GOOD, {**GOOD, "output": "no"}], format)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        rows_of(path)
    except FormatError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"[]", "holds no rows"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", "is binary"),
        (b"PK\x03\x04...", "ZIP archive"),
        (b"BZh9...", "bzip2"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (json.dumps([GOOD]).encode("utf-16-be"), "UTF-16"),
        (b"instruction,output\na,b\n", "is not JSON"),
        (json.dumps({"a": GOOD}, indent=2).encode(), "found 'a'"),
        (b'[{"frage": "a", "antwort": "b"}]', "found 'frage', 'antwort'"),
        (b"[1, 2]", "not objects"),
        (b'[{"instruction": "a", "output": null}]', "no usable row among 1 (the first: no text in 'output')"),
        (b'[{"instruction": "a", "output": "b"}', "is truncated: its JSON list has no end after 1 elements"),
        (b'[{"instruction": "a", "output": "b"},', "is truncated"),
        (b'[{"instruction": "a", "output": "b"},]', "is not valid JSON: element 1"),
        (b'[{"instruction": "a", "output": "b"} {}]', "no comma between elements 0 and 1"),
        (b'[{"instruction": "a", "output": "b"}, {"a": }]', "is not valid JSON: element 1"),
        (b'[{"instruction": "a", "output": "b"}] []', "continues after the end"),
        (b'{"instruction": "a", "output": "b"}\n{"instruction": "c", "out', "its last line (2) is not complete"),
        (gzip.compress(b"[]" * 99, mtime=0)[:-4], "is truncated: its compressed data"),
        (gzip.compress(b"hello", mtime=0), "is not JSON"),
    ],
)
def test_what_is_said_of_a_bad_file(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(saved(tmp_path, content))


def test_what_is_said_of_no_file(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nothing.json")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    path = saved(tmp_path, [GOOD])
    assert "expected the fields conversations; found 'instruction'" in refusal(path, "sharegpt")
    with pytest.raises(FormatError, match="unknown format 'csv': one of auto, alpaca"):
        read(path, "csv")


def test_a_row_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.json.zst"
    with zstandard.ZstdCompressor().stream_writer(path.open("wb"), closefd=True) as file:
        file.write(b'[{"instruction": "a", "output": "')
        for _ in range(130):
            file.write(b"b" * (1 << 20))
    assert "a quote or bracket is unclosed" in refusal(path, "alpaca")


# --- bad rows -------------------------------------------------------------------------------------

BAD_ROWS = {
    "5": "not an object but a number",
    '"text"': "not an object but a text",
    "null": "not an object but null",
    "[{}]": "not an object but a list",
    "{}": "no text in 'instruction'",
    '{"instruction": "a"}': "no text in 'output'",
    '{"instruction": "a", "output": null}': "no text in 'output'",
    '{"instruction": "a", "output": ["b"]}': "no text in 'output' but a list",
    '{"instruction": "a", "input": false, "output": "b"}': "no text in 'input' but a boolean",
    '{"instruction": "a\\ud800", "output": "b"}': "lone surrogate in 'instruction'",
    '{"instruction": "a", "output": "\\udc00\\ud800"}': "lone surrogate in 'output'",
    '{"instruction": "a", "input": "\\u0000", "output": "b"}': "NUL in 'input'",
    '{"instruction": "a", "output": "b", "id": ["\\ud800"]}': "lone surrogate in 'id'",
    '{"instruction": "a", "output": "b", "\\ud800": 1}': "lone surrogate in the name of a field",
    '{"instruction": "a", "output": "b", "id": ' + "[" * 70 + "]" * 70 + "}": "nested too deeply in 'id'",
    '{"instruction": "a", "output": "b", "id": ' + "[" * 9999 + "]" * 9999 + "}": "nested too deeply",
}


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_is_named_and_the_rest_is_read(tmp_path: Path, name: str, bad: str) -> None:
    good = json.dumps(GOOD)
    path = saved(tmp_path, f"[{good},{bad}, {good}]" if name == "data.json" else f"{good}\n{bad}\n{good}", name)
    reading = read(path)
    rows = list(reading)
    assert [(row.position, row.texts is None) for row in rows] == [(0, False), (1, True), (2, False)]
    assert (rows[1].reason, rows[1].extra, rows[0].reason) == (BAD_ROWS[bad], {}, None)
    assert (reading.rows, reading.rejected) == (3, 1)


def test_bytes_that_are_no_utf8_spoil_their_row_only(tmp_path: Path) -> None:
    good, bad = json.dumps(GOOD).encode(), b'{"instruction": "caf\xe9", "output": "b"}'
    for content in (b"[" + bad + b"," + good + b"]", bad + b"\n" + good):
        rows = rows_of(saved(tmp_path, content))
        assert [row.texts is None for row in rows] == [True, False]
        assert "not UTF-8" in str(rows[0].reason)


def test_a_line_that_is_no_json_is_a_bad_row(tmp_path: Path) -> None:
    good = json.dumps(GOOD)
    rows = rows_of(
        saved(tmp_path, f'not json\r\n\r\n{good}\r\n  \r\n{{"instruction": "a", \r\n{good}\r\n', "data.jsonl")
    )
    assert [row.reason for row in rows] == ["line 1 is not JSON", None, "line 5 is not JSON", None]
    assert [row.position for row in rows] == [0, 1, 2, 3]


# --- formats --------------------------------------------------------------------------------------


def test_alpaca_rows(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": " a ", "input": None, "output": ""},
        {"instruction": "a", "input": "<noinput>", "output": "b", "id": 7, "tags": ["x", {"y": 1.5}]},
        {"instruction": "a", "input": "None of these", "output": "b"},
    ]
    found = rows_of(saved(tmp_path, b"\xef\xbb\xbf" + json.dumps(rows).encode()))
    assert [row.texts for row in found] == [
        ("a", "", "b"),
        (" a ", "", ""),
        ("a", "", "b"),
        ("a", "None of these", "b"),
    ]
    assert [row.extra for row in found] == [
        {},
        {},
        {"id": 7, "tags": ["x", {"y": 1.5}], "original_input": "<noinput>"},
        {},
    ]


def test_what_is_kept_beside_the_texts_is_json(tmp_path: Path) -> None:
    path = saved(tmp_path, '[{"instruction": "a", "output": "b", "x": NaN, "y": [Infinity, 1], "z": "\\u0000"}]')
    assert rows_of(path)[0].extra == {"x": None, "y": [None, 1], "z": "\0"}
    table = {
        **{name: [text] for name, text in GOOD.items()},
        "on": [date(2024, 2, 29)],
        "raw": [b"\xff"],
        "nan": [math.nan],
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    assert rows_of(tmp_path / "data.parquet")[0].extra == {"on": "2024-02-29", "raw": "/w==", "nan": None}


def said(role: str, text: Any, role_field: str = "from", text_field: str = "value") -> dict[str, Any]:
    return {role_field: role, text_field: text}


CONVERSATIONS: list[tuple[list[Any], Any, dict[str, Any], bool]] = [
    ([said("human", "q"), said("gpt", "a")], ("q", "", "a"), {}, False),
    ([said("user", "q"), said("assistant", "a"), said("user", "r")], ("q", "", "a"), {}, True),
    ([said("system", "s"), said("human", "q"), said("gpt", "a")], ("q", "", "a"), {"system": "s"}, False),
    (
        [said("human", "q"), said("system", "s"), said("gpt", "a")],
        "turn 2 of 'conversations' is a system prompt, so the first question has no answer in text",
        {},
        False,
    ),
    ([said("gpt", "hi"), said("human", "q"), said("gpt", "a")], ("q", "", "a"), {}, True),
    ([said("human", "p"), said("human", "q"), said("gpt", "a")], ("q", "", "a"), {}, True),
    ([said("gpt", "a"), said("human", "q")], "no human turn followed by a model's turn in 'conversations'", {}, False),
    ([], "no human turn followed by a model's turn in 'conversations'", {}, False),
    (["q", {}], "turn 1 of 'conversations' is not an object but a text", {}, False),
    ([said("human", "q"), said("gpt", None)], "no text in turn 2 of 'conversations'", {}, False),
    ([said("human", "q\ud800"), said("gpt", "a")], "lone surrogate in turn 1 of 'conversations'", {}, False),
]


@pytest.mark.parametrize(("turns", "texts", "extra", "longer"), CONVERSATIONS)
def test_sharegpt_rows(tmp_path: Path, turns: list[Any], texts: Any, extra: dict[str, Any], longer: bool) -> None:
    good = [said("human", "x"), said("gpt", "y")]
    path = saved(tmp_path, [{"id": "i1", "conversations": turns}, {"conversations": good}])
    reading = read(path, how=How(context="drop"))  # as earlier releases did; test_shapes has the rest
    row, other = reading
    assert other.texts == ("x", "", "y")
    assert (reading.format, reading.cut) == ("sharegpt", longer)
    if isinstance(texts, str):
        assert (row.texts, row.reason) == (None, texts)
    else:
        assert (row.texts, row.extra) == (texts, {"id": "i1", **extra})


def test_message_rows(tmp_path: Path) -> None:
    def turn(role: str, content: Any) -> dict[str, Any]:
        return said(role, content, "role", "content")

    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    rows = [
        {"messages": [turn("system", "s"), turn("user", parts), turn("assistant", "a")], "source": "x"},
        {"messages": [turn("user", [{"type": "image_url"}]), turn("assistant", "a")]},
        {"messages": "q"},
    ]
    reading = read(saved(tmp_path, "\n".join(map(json.dumps, rows))), how=How(context="drop"))
    first, second, third = reading
    assert (first.texts, first.extra) == (("one two", "", "a"), {"source": "x", "system": "s"})
    assert second.reason == "an image in turn 1 of 'messages': recycledb reads text only"
    assert third.reason == "no list in 'messages'"
    assert (reading.format, reading.cut) == ("messages", 0)


@pytest.mark.parametrize("field", ["conversations", "messages"])
def test_conversations_in_parquet(tmp_path: Path, field: str) -> None:
    names = ("from", "value") if field == "conversations" else ("role", "content")
    turns = [said("user", "q", *names), said("assistant", "a", *names)]
    pq.write_table(pa.table({"id": [1, 2], field: [None, turns]}), tmp_path / "data.parquet")
    rows = rows_of(tmp_path / "data.parquet")
    assert [(row.texts, row.reason) for row in rows] == [(None, f"no list in '{field}'"), (("q", "", "a"), None)]


def test_parquet_rows_that_are_no_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"instruction": raw, "output": raw}), tmp_path / "data.parquet")
    good, bad = rows_of(tmp_path / "data.parquet")
    assert good.texts == ("good", "", "good")
    assert "not UTF-8" in str(bad.reason)


PLACEHOLDERS = """<noinput>|No input.|N/A|"<noinput>"|<no input>.|\\<noinput\\>|<noinpute>|<noinput|No input required|NoInput
<none>|noinput|Noinput|No Input|no input|No input required.|n/a|None|No Input.|[No input]|(no input)|No input needed|no_input
Not applicable|No additional input required|No input is required.|<N/A>|No Input Provided"""
REAL_INPUTS = """|None of these|58|[Link to article]|<document>|<LINK TO ARTICLE>|A.I.|No|no one|none of the above|Input: 5|input
Noam Chomsky|"No, I haven't seen it"|Nothing|na|Na|NaN|No input devices were found|The user gave no input|[Insert Photo Here]
<attach image logo>|No input, no output|NA"""


def test_placeholders() -> None:
    assert [text for text in PLACEHOLDERS.replace("\n", "|").split("|") if not is_placeholder(text)] == []
    assert [text for text in REAL_INPUTS.replace("\n", "|").split("|") if is_placeholder(text)] == []


# --- writing --------------------------------------------------------------------------------------


def test_alpaca_bytes(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**GOOD, "id": 3}, {"instruction": "é\n", "input": "🙂", "output": "\u2028"}]
    plain = [{name: row[name] for name in Texts._fields} for row in rows]
    wanted = (json.dumps(plain, ensure_ascii=False, indent=4) + "\n").encode()
    digest = write(tmp_path / "data.json", iter(rows), "alpaca")
    assert (tmp_path / "data.json").read_bytes() == wanted == dumps_alpaca(rows)
    assert digest == hashlib.sha256(wanted).hexdigest()
    write(tmp_path / "data.json", [], "alpaca")
    assert (tmp_path / "data.json").read_bytes() == b"[]\n" == dumps_alpaca([])


@pytest.mark.parametrize(("format", "suffix"), FORMS)
def test_equal_rows_give_equal_bytes(tmp_path: Path, format: str, suffix: str) -> None:
    digests = {write(tmp_path / f"{name}{suffix}", [{**GOOD, "ppl": 1.5}] * 3, format) for name in "ab"}
    assert len(digests) == 1


def test_other_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"sample_id": "a", **GOOD, "ppl": None, "n": 1, "flag": True, "mixed": 1, "when": None},
        {"sample_id": "b", **GOOD, "ppl": 2, "n": 2, "flag": None, "mixed": "x", "late": {"k": [1]}},
        {"sample_id": "c", **GOOD, "ppl": math.nan, "n": 2**70, "when": date(2024, 2, 29)},
    ]
    write(tmp_path / "data.jsonl", rows, "jsonl")
    lines = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert lines[1] == {**GOOD, "sample_id": "b", "ppl": 2, "n": 2, "flag": None, "mixed": "x", "late": {"k": [1]}}
    assert (lines[2]["ppl"], lines[2]["when"]) == (None, "2024-02-29")
    write(tmp_path / "data.parquet", rows, "parquet")
    table = pq.read_table(tmp_path / "data.parquet")
    assert list(table.to_pydict()["mixed"]) == ["1", "x", None]
    assert table.to_pydict()["n"] == ["1", "2", str(2**70)]
    assert table.to_pydict()["late"] == [None, '{"k": [1]}', None]
    types = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)}
    assert (types["ppl"], types["flag"], types["when"], types["instruction"]) == ("int64", "bool", "string", "string")


@pytest.mark.parametrize(("format", "suffix"), FORMS)
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, format: str, suffix: str) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield from [GOOD] * 5000
        raise KeyboardInterrupt

    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        write(path, rows(), format)
    for bad in ({"instruction": "a", "output": "b"}, {**GOOD, "output": "\ud800"}):
        with pytest.raises(FormatError, match=r"row 1 has .* cannot be written"):
            write(path, [GOOD, bad], format)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_where_a_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "data.json")
    write(tmp_path / "link.json", [GOOD], "alpaca")
    assert (tmp_path / "link.json").is_symlink()
    assert texts_of(tmp_path / "data.json") == [Texts(**GOOD)]
    assert (tmp_path / "data.json").stat().st_mode & 0o777 == 0o666 & ~umask()
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "data.json", "cannot be written: No such file"),
    ):
        with pytest.raises(WriteError, match=message):
            write(path, [GOOD], "alpaca")
    with pytest.raises(FormatError, match="unknown format 'csv': one of alpaca, sharegpt, messages"):
        write(tmp_path / "data.csv", [GOOD], "csv")


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_writing_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "pipe", [GOOD], "alpaca")
    assert os.read(reader, 1 << 16) == dumps_alpaca([GOOD])
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("format", "suffix"), [("alpaca", ""), ("jsonl", ""), ("alpaca", ".gz"), ("jsonl", ".zst")])
def test_a_file_is_streamed(tmp_path: Path, format: str, suffix: str) -> None:
    chance = random.Random(3)
    path = tmp_path / f"data{suffix}"
    rows = ({**GOOD, "output": chance.randbytes(20_000).hex()} for _ in range(400))  # 16 MB
    tracemalloc.start()
    try:
        write(path, rows, format)
        assert sum(1 for _ in read(path)) == 400
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


# --- published statistics -------------------------------------------------------------------------

FOUR = [1.0, 2.0, 0.5, 1.5]
PPL = [math.exp(loss) for loss in FOUR]


def test_scores_as_json_lines(tmp_path: Path) -> None:
    lines = [
        {"ppl": PPL, "loss": FOUR},
        {},
        {"ppl": [0, 0, 0, 0], "loss": [0, 0, 0, 0]},
        {"ppl": [math.nan, PPL[1], math.inf, 1.0], "loss": [math.nan, 2.0, 800, 0.0]},
        {"ppl": [0, *PPL[1:]], "loss": [0, *FOUR[1:]], "more": "x"},
    ]
    found = list(read_scores(saved(tmp_path, "\n".join(map(json.dumps, lines)), "scores.jsonl"), "origin"))
    nothing = (None,) * 4
    assert [scores.position for scores in found] == [0, 1, 2, 3, 4]
    assert [scores.loss for scores in found[:3]] == [tuple(FOUR), nothing, nothing]
    assert [scores.ppl for scores in found[:3]] == [tuple(PPL), nothing, nothing]
    assert (found[3].loss, found[3].ppl) == ((None, 2.0, None, 0.0), (None, PPL[1], None, 1.0))
    assert (found[4].loss, found[4].ppl) == ((None, *FOUR[1:]), (None, *PPL[1:]))


def published(path: Path, *losses: list[float] | None) -> None:
    data = [{"loss": loss, "ppl": loss and [math.exp(value) for value in loss]} for loss in losses]
    pq.write_table(pa.table({"data": data}), path)


def test_scores_as_parquet(tmp_path: Path) -> None:
    published(tmp_path / "origin-00000-of-00002.parquet", FOUR, None)
    published(tmp_path / "origin-00001-of-00002.parquet", [3.0] * 4)
    published(tmp_path / "reflect_both-00000-of-00001.parquet", [4.0] * 4)
    found = list(read_scores(tmp_path, "origin"))
    assert [scores.loss for scores in found] == [tuple(FOUR), (None,) * 4, (3.0,) * 4]
    assert [scores.position for scores in found] == [0, 1, 2]
    both = tmp_path / "reflect_both-00000-of-00001.parquet"
    assert [next(read_scores(both, kind)).loss for kind in ("reflect_both", None)] == [(4.0,) * 4] * 2
    for path, kind, message in [
        (both, "origin", "is named after reflect_both, not origin"),
        (tmp_path / "origin-00000-of-00002.parquet", "origin", "is one of 2 parts: give the folder"),
        (tmp_path, None, "give the kind"),
        (tmp_path, "reflect_response", "has no file named reflect_response-"),
    ]:
        with pytest.raises(FormatError, match=message):
            list(read_scores(path, kind))
    (tmp_path / "origin-00000-of-00002.parquet").unlink()
    with pytest.raises(FormatError, match="has only 1 of the 2 files of origin"):
        list(read_scores(tmp_path, "origin"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([GOOD], "row 0 .* has no 'loss' and 'ppl'"),
        ([{"loss": FOUR, "ppl": PPL}, 5], "row 1 .* has no 'loss' and 'ppl'"),
        ([{"loss": FOUR[:3], "ppl": PPL}], "has no list of 4 in 'loss'"),
        ([{"loss": FOUR, "ppl": [*PPL[:3], "x"]}], "has 'x' in 'ppl', which is not a number"),
        ([{"loss": FOUR, "ppl": [*PPL[:3], True]}], "has True in 'ppl'"),
        ([{}, {}], "holds no statistics"),
        ("{}\noops\n{}", "row 1 .* line 2 is not JSON"),
        ("", "is empty"),
        ('{"loss": [1', "row 0 .* not JSON"),
    ],
)
def test_what_is_no_file_of_scores(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        list(read_scores(saved(tmp_path, content), "origin"))
