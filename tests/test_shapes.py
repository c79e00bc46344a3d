# ruff: noqa: E501 - a table of files, one a line
"""`add` over files of every shape that people have: the right samples, or the sentence that says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli
from test_formats import refusal, saved

from recycledb.errors import FormatError
from recycledb.formats import How, mapping_of, read
from recycledb.schema import Texts, context_json, sample_id

USER, MODEL = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
THANKS = [{"role": "user", "content": "Thanks!"}, {"role": "assistant", "content": "You're welcome!"}]
IN_SYSTEM = context_json([("system", "s")])
AFTER_ONE = context_json([("system", "s"), ("user", "q"), ("assistant", "a")])


def samples(path: Path, **options: Any) -> list[Texts | str]:
    """Return the samples of a file, and the reasons of its rejected rows."""
    return [row.texts or row.reason or "" for row in read(path, how=How(**options))]


def tree(text: str, role: str, rank: int | None = None, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


TREE = tree(
    "q", "prompter", None,
    tree("worse", "assistant", 1), tree("gone", "assistant", 0, deleted=True),
    tree("a", "assistant", 0, tree("q2", "prompter", 0, tree("a2", "assistant", 0))),
)  # fmt: skip
FLAT = [
    {"message_id": "1", "parent_id": None, "message_tree_id": "1", "text": "q", "role": "prompter", "rank": None},
    {"message_id": "2", "parent_id": "1", "message_tree_id": "1", "text": "worse", "role": "assistant", "rank": 1},
    {"message_id": "3", "parent_id": "1", "message_tree_id": "1", "text": "a", "role": "assistant", "rank": 0},
    {"message_id": "4", "parent_id": None, "message_tree_id": "4", "text": "lonely", "role": "prompter", "rank": None},
    {"message_id": "9", "parent_id": "8", "message_tree_id": "7", "text": "torn", "role": "assistant", "rank": 0},
]
QA = [Texts("q", "", "a")]

# name of the file, its content, the format found, its samples and reasons
ODD: dict[str, tuple[str, Any, str, list[Texts | str]]] = {
    "one object with the rows": ("d.json", {"version": 1, "data": [{"question": "q", "answer": "a"}]}, "fields", QA),
    "one row over several lines": ("d.json", json.dumps({"instruction": "q", "output": "a"}, indent=2), "alpaca", QA),
    "rows over several lines": ("d.json", '{"prompt": "q",\n"completion": "a"}\n' * 2, "fields", QA * 2),
    "prompt and completion": ("d.jsonl", '{"prompt": "q", "completion": "a"}\n', "fields", QA),
    "TRL's conversational pair": ("d.json", [{"prompt": [SYSTEM, USER], "completion": [MODEL]}], "fields", [Texts("q", "", "a", IN_SYSTEM)]),
    "OpenOrca": ("d.json", [{"id": "1", "system_prompt": "s", "question": "q", "response": "a"}], "fields", [Texts("q", "", "a", IN_SYSTEM)]),
    "Dolly": ("d.jsonl", '{"instruction": "q", "context": "c", "response": "a", "category": "x"}', "dolly", [Texts("q", "c", "a")]),
    "LIMA": ("d.jsonl", '{"conversations": ["q", "a", "q2", "a2"], "source": "x"}\n{"conversations": ["q"]}', "lima",
             [*QA, "no human turn followed by a model's turn in 'conversations'"]),
    "self-instruct": ("d.jsonl", json.dumps({"id": 1, "instruction": "q", "instances": [{"input": "c", "output": "a"}, {"input": "", "output": "b"}]}),
                      "self-instruct", [Texts("q", "c", "a"), Texts("q", "", "b")]),
    "trees": ("d.jsonl", json.dumps({"message_tree_id": "1", "prompt": TREE}), "oasst", QA),
    "messages of trees": ("d.json", FLAT, "oasst-messages",
        [*QA, "no human turn followed by a model's turn in 'prompt'",
         "no first message among 1 messages of a tree that follow each other: sort the file by message_tree_id"]),
    "CSV": ("d.csv", 'Question;Answer;topic\n"q ""x"", y";"a\nb";t\nq;a\n', "fields", [Texts('q "x", y', "", "a\nb"), "line 4 has 2 fields, and the header 3"]),
    "TSV": ("d.tsv", "instruction\toutput\nq\ta\n", "alpaca", QA),
    "UTF-16": ("d.json", json.dumps([{"instruction": "q", "output": "a"}]).encode("utf-16"), "alpaca", QA),
    "system and history": ("d.json", [{"instruction": "i", "input": "c", "output": "o", "system": "s", "history": [["q", "a"]]}], "alpaca",
                           [Texts("i", "c", "o", AFTER_ONE)]),
    "an empty system": ("d.json", [{"instruction": "q", "output": "a", "system": "", "history": []}], "alpaca", QA),
    "another sort of history": ("d.json", [{"instruction": "q", "output": "a", "history": ["x"]}], "alpaca", QA),
    "a system turn and a later pair": ("d.json", [{"messages": [SYSTEM, USER, MODEL, *THANKS]}], "messages", [Texts("q", "", "a", IN_SYSTEM)]),
    "a system column": ("d.json", [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}], "sharegpt",
                        [Texts("q", "", "a", IN_SYSTEM)]),
    "parts of text": ("d.json", [{"messages": [{"role": "user", "content": [{"type": "text", "value": "q"}]}, {"role": "assistant", "content": ["a"]}]}], "messages", QA),
    "an image in parts": ("d.json", [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}, MODEL]}, {"messages": [USER, MODEL]}], "messages",
                          ["an image in turn 1 of 'messages': recycledb reads text only", *QA]),
    "an image in a column": ("d.json", [{"instruction": "q", "output": "a", "images": ["x.png"]}, {"instruction": "q", "output": "a", "images": []}], "alpaca",
                             ["an image in 'images': recycledb reads text only", *QA]),
    "a sound": ("d.json", [{"messages": [USER, {"role": "assistant", "content": [{"type": "input_audio"}]}]}, {"messages": [USER, MODEL]}], "messages",
                ["a sound in turn 2 of 'messages': recycledb reads text only", *QA]),
    "a tool call": ("d.json", [{"messages": [USER, CALL, {"role": "tool", "content": "x"}, MODEL, *THANKS]}, {"messages": [USER, MODEL]}], "messages",
                    ["turn 2 of 'messages' is a tool call, so the first question has no answer in text", *QA]),
    "ShareGPT's tool call": ("d.json", [{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f"},
        {"from": "observation", "value": "x"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "Thanks!"}, {"from": "gpt", "value": "You're welcome!"}]},
        {"messages": []}, {"conversations": ["q", "a"]}], "sharegpt",
        ["turn 2 of 'conversations' is a tool call, so the first question has no answer in text", "no list in 'conversations'", *QA]),
    "an unknown role": ("d.json", [{"messages": [{"role": "narrator", "content": "x"}, USER, MODEL]}, {"messages": [USER, MODEL]}], "messages",
                        ["turn 1 of 'messages' is of the unknown role 'narrator'", *QA]),
    "a greeting first": ("d.json", [{"messages": [MODEL, USER, MODEL]}], "messages", [Texts("q", "", "a", context_json([("assistant", "a")]))]),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_an_odd_file_gives_its_samples_or_the_reason(tmp_path: Path, what: str) -> None:
    name, content, format, expected = ODD[what]
    path = saved(tmp_path, content, name)
    assert samples(path) == expected
    assert read(path).format == format


def test_add_over_the_folder_of_odd_files(tmp_path: Path, cli: Cli) -> None:
    """All of them with one command: as many samples as there are, each reason with its file, and what was guessed and left out."""
    for number, (name, content, _, _) in enumerate(ODD.values()):
        saved(tmp_path, content, f"{number}{name[1:]}")
    files = sorted(tmp_path.glob("*.*"), key=lambda path: int(path.name.partition(".")[0]))
    done = cli("--store", f"sqlite:///{tmp_path}/s.db", "add", *files, "--dataset", "odd", "--json")
    (report,) = json.loads(done.stdout)["datasets"]
    expected = [each for *_, found in ODD.values() for each in found]
    assert report["rows"] == len(expected)
    assert report["rejected"] == sum(isinstance(each, str) for each in expected)
    assert [each["reason"] for each in report["rejections"]] == [each for each in expected if isinstance(each, str)]
    assert report["added"] == len({sample_id(each) for each in expected if isinstance(each, Texts)})
    by_name = dict(zip(ODD, report["files"], strict=True))
    assert by_name["one object with the rows"]["notes"][0] == "the rows are the list in 'data'"
    assert "0.json: instruction is 'question', output is 'answer' (else use --map)" in done.stderr
    assert by_name["a system turn and a later pair"]["left_out"] == {"later_turns": 2}
    assert "left out: 2 turns after the answer; --turns all makes a sample of each answer" in done.stderr
    assert by_name["system and history"]["contexts"] == 1


TALK = [
    SYSTEM,
    USER,
    MODEL,
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
    {"role": "user", "content": "open"},
]
ONE, TWO = Texts("q", "", "a", IN_SYSTEM), Texts("q2", "", "a2", AFTER_ONE)


@pytest.mark.parametrize(
    ("turns", "context", "expected", "left_out"),
    [
        ("first", "keep", [ONE], {"later_turns": 3}),
        ("last", "keep", [TWO], {"later_turns": 1}),
        ("all", "keep", [ONE, TWO], {"later_turns": 1}),
        ("first", "drop", [Texts("q", "", "a")], {"system": 1, "later_turns": 3}),
        ("last", "drop", [Texts("q2", "", "a2")], {"system": 1, "earlier_turns": 2, "later_turns": 1}),
        ("all", "drop", [Texts("q", "", "a"), Texts("q2", "", "a2")], {"system": 1, "later_turns": 1}),
    ],
)
def test_which_turns_are_samples(
    tmp_path: Path, turns: str, context: str, expected: list[Texts], left_out: Any
) -> None:
    path = saved(tmp_path, [{"messages": TALK, "id": 7}, "no object", {"messages": [USER, MODEL]}])
    reading = read(path, how=How(turns=turns, context=context))
    rows = list(reading)
    assert [row.texts for row in rows] == [*expected, None, Texts("q", "", "a")]
    assert [row.position for row in rows] == list(range(len(rows)))  # each sample and each rejected row has one
    assert [row.number for row in rows] == [0] * len(expected) + [1, 2]
    assert dict(reading.tally.left_out) == left_out and reading.cut == 1
    assert rows[0].extra == ({"id": 7} if context == "keep" else {"id": 7, "system": "s"})


def test_what_comes_after_a_tool_call_is_no_context(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        [{"messages": [USER, MODEL, {"role": "user", "content": "q2"}, CALL, *THANKS]}, {"messages": [USER, MODEL]}],
    )
    assert samples(path) == samples(path, turns="all") == [*QA, *QA]
    assert samples(path, turns="last") == ["turn 4 of 'messages' is a tool call, which a context cannot hold", *QA]


def test_fields_by_a_mapping(tmp_path: Path) -> None:
    path = saved(
        tmp_path, [{"Frage": "q", "Antwort": "a", "Regel": "s"}, {"Frage": "q", "Antwort": "a"}, {"Frage": "q"}]
    )
    mapping = mapping_of("instruction=Frage, output=Antwort,system=Regel")
    assert samples(path, mapping=mapping) == [Texts("q", "", "a", IN_SYSTEM), *QA, "no text in 'Antwort'"]
    assert "name them, as in --map instruction=FIELD,output=FIELD" in refusal(path)
    turns = saved(tmp_path, [{"dialogue": [USER, MODEL]}], "turns.json")
    assert samples(turns, mapping=mapping_of("messages=dialogue")) == QA
    for text, said in [
        ("instruction=Frag,output=Antwort", "has no field 'Frag' (did you mean 'Frage'?); its fields are 'Frage', 'Antwort', 'Regel'"),
        ("instruktion=Frage,output=Antwort", "'instruktion' is not one of instruction, input, output, system, history, messages (did you mean"),
        ("instruction=Frage", "give instruction and output, or messages"),
        ("Frage", "give NAME=FIELD"),
    ]:  # fmt: skip
        with pytest.raises(FormatError) as caught:
            samples(path, mapping=mapping_of(text))
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_encodings(tmp_path: Path) -> None:
    latin = saved(
        tmp_path,
        '{"instruction": "café", "output": "a"}\n{"instruction": "q", "output": "a"}'.encode("latin-1"),
        "d.jsonl",
    )
    bad, good = samples(latin)
    assert "not UTF-8" in str(bad) and "`--encoding latin-1`" in str(bad) and good == QA[0]
    assert samples(latin, encoding="latin-1") == [Texts("café", "", "a"), *QA]
    for content in (
        '{"instruction": "café", "output": "a"}',
        '[{"instruction": "café", "output": "a"}]',
    ):  # no row can be read
        told = refusal(saved(tmp_path, content.encode("latin-1"), "d.json"))
        assert "d.json is not UTF-8 (" in told and "`--encoding latin-1`" in told and "JSON:" not in told
    table = saved(tmp_path, "question,answer\ncafé,a\nq,a\n".encode("cp1252"), "d.csv")
    assert "not UTF-8" in str(samples(table)[0]) and samples(table, encoding="cp1252")[0] == Texts("café", "", "a")
    with pytest.raises(FormatError, match=r"is not utf-16 text .* give its own --encoding"):
        samples(latin, encoding="utf-16")
    with pytest.raises(FormatError, match="unknown encoding 'latin-x': give a name such as latin-1"):
        samples(latin, encoding="latin-x")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.json", {"train": [{"a": 1}], "test": [{"a": 1}]}, "one JSON object with several lists of rows: 'train', 'test'; save the one"),
        ("d.json", json.dumps({"instruction": ["a"], "b": 1}, indent=1), "is one JSON object, and no list of rows in it: "),
        ("d.json", '{"data": [{"instruction": "a", "output": "b"}]} x', "is not JSON"),
        ("d.json", '{"data": [{"instruction": "a", "output": "b"}', "is not JSON"),
        ("d.csv", 'question,answer\nq,"a\n', "is truncated, or a quote is never closed"),
        ("d.csv", "a,a\n1,2\n", "has two columns called 'a'"),
        ("d.csv", "name,value\n1,2\n", "found 'name', 'value'"),
        ("d.tsv", 'question\tanswer\n"q" x\ta\n', "within quotes, a quote is written twice"),
        ("d.json", "question,answer\nq,a\n", "CSV and TSV are known by their names"),
        ("d.json", [{"messages": [USER, CALL]}], "no usable row among 1 (the first: turn 2 of 'messages' is a tool call"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_file_without_samples(tmp_path: Path, name: str, content: Any, said: str) -> None:
    assert said in refusal(saved(tmp_path, content, name))


def test_a_large_object_is_read_row_by_row(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": str(n) * 50} for n in range(100)]
    path = saved(tmp_path, {"a": [1], "b": {"c": "]}"}, "rows": rows, "z": None})
    found = list(read(path, how=How(max_row=2_000)))  # far smaller than the object
    assert [row.texts.output for row in found if row.texts] == [row["answer"] for row in rows]


def test_conversations_in_parquet_have_a_context_too(tmp_path: Path) -> None:
    turn = pa.list_(pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": pa.list_(pa.string())}))
    table = pa.table(
        {
            "messages": pa.array(
                [[{**SYSTEM, "tool_calls": None}, {**USER, "tool_calls": []}, {**MODEL, "tool_calls": []}]], turn
            )
        }
    )
    pq.write_table(table, tmp_path / "d.parquet")
    assert samples(tmp_path / "d.parquet") == [ONE]


# Ids of the releases before contexts; they must never change.
KNOWN_IDS = {
    ("Say hello.", "", "Hello!"): "1619928a1db219a8a87f7b9bd971f0e9",
    ("a", "b", "c"): "24de1fcea11ccfb100bd3bfc13188271",
}


def test_ids_without_a_context_are_those_of_earlier_releases() -> None:
    assert {texts: sample_id(Texts(*texts)) for texts in KNOWN_IDS} == KNOWN_IDS
    assert len({sample_id(Texts("a", "b", "c", context)) for context in (None, IN_SYSTEM, AFTER_ONE)}) == 3
