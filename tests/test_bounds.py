"""Bounds of what is read: a small file that unfolds to gigabytes, a row without an end, values without number, Parquet's odd ones."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import Cli, clean_environment

from recycledb.errors import FormatError
from recycledb.formats import read
from recycledb.formats.values import MAX_VALUES

ROOT = Path(__file__).parents[1]
GOOD = b'{"instruction": "a", "output": "b"}'
OPEN = b'{"instruction": "a", "output": "'
MEMORY = (
    1 << 30
)  # of addresses, for an interpreter with numpy and pyarrow's absence; the files below unfold to more than that

READER = f"""
import resource, sys
from pathlib import Path
from recycledb.errors import FormatError
from recycledb.formats import read
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
try:
    rows = list(read(Path(sys.argv[1])))
    print(*(row.reason or "good" for row in rows), sep="; ")
except FormatError as error:
    print(error)
# Not getrusage: its peak is inherited from the process that started this one.
print(next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) // 1024)
"""


def zstd(path: Path, *parts: tuple[bytes, int]) -> None:
    """Write parts, each repeated."""
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) as stream:
        for text, times in parts:
            block = text * min(times, (1 << 22) // len(text) + 1)
            for _ in range(times * len(text) // len(block)):
                stream.write(block)


def gz(path: Path, *parts: tuple[bytes, int]) -> None:
    """Write parts, each repeated."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for text, times in parts:
            for _ in range(times * len(text) >> 20):
                file.write(text * ((1 << 20) // len(text)))
            if times * len(text) < 1 << 20:
                file.write(text * times)


def told_of(path: Path) -> tuple[str, int]:
    """Return what a process of little memory says of a file, and its peak in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, peak = done.stdout.strip().rsplit("\n", 1)
    return said, int(peak)


MANY = f"more than {MAX_VALUES:,} values"
TOO_LARGE = "row 1 (counted from 0) is larger than 64 MiB"


@pytest.mark.long
@pytest.mark.default_cases("line.zst")
@pytest.mark.parametrize(
    ("name", "write", "parts"),
    [
        ("line.zst", zstd, [(GOOD + b"\n" + OPEN, 1), (b"x", 4 << 30)]),  # 131 KB
        ("list.zst", zstd, [(b"[" + GOOD + b"," + OPEN, 1), (b"x", 2 << 30)]),
        ("list.gz", gz, [(b"[" + GOOD + b"," + OPEN, 1), (b"x", 1 << 28)]),
    ],
)
def test_a_row_without_an_end_is_refused_in_little_memory(
    tmp_path: Path, name: str, write: Callable[..., None], parts: list[tuple[bytes, int]]
) -> None:
    write(tmp_path / name, *parts)
    said, peak = told_of(tmp_path / name)
    assert said.startswith(f"{tmp_path / name}: {TOO_LARGE}") and "--max-row-mb" in said
    assert peak < 500


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("many.json", lambda n: b"[" + GOOD + b',{"x": [' + b"[]," * n + b"[]]}]", "row 1 (counted from 0) has more than"),
        ("many.jsonl", lambda n: GOOD + b'\n{"x": [' + b"[]," * n + b"[]]}\n" + GOOD, f"good; {MANY}; good"),
        ("numbers.json", lambda n: b"[" + GOOD + b',{"x": [' + b"0," * n + b"0]}]", f"good; {MANY}"),
        ("deep.jsonl", lambda n: GOOD + b"\n" + b'{"x":' * n + b"1" + b"}" * n + b"\n" + GOOD, f"good; {MANY}; good"),
    ],
)  # fmt: skip
def test_values_without_number_are_not_built(
    tmp_path: Path, name: str, content: Callable[[int], bytes], said: str
) -> None:
    (tmp_path / name).write_bytes(content(600_000))
    found, peak = told_of(tmp_path / name)
    assert said in found and peak < 300


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("unit", ['{"a":', "["])
def test_nesting_is_a_rejected_row_and_no_crash(tmp_path: Path, name: str, unit: str) -> None:
    close = "}" if unit[0] == "{" else "]"
    deep = '{"instruction": "a", "output": "b", "x": ' + unit * 100_000 + "1" + close * 100_000 + "}"
    rows = [GOOD.decode(), deep, GOOD.decode()]
    (tmp_path / name).write_text(f"[{','.join(rows)}]" if name == "data.json" else "\n".join(rows))
    assert [row.reason for row in read(tmp_path / name)] == [None, "nested too deeply", None]


@pytest.mark.long
def test_a_text_of_many_commas_is_a_text(tmp_path: Path) -> None:
    text = 'a, [b], {c} \\" ' * (MAX_VALUES // 2)
    (tmp_path / "data.jsonl").write_text(json.dumps({"instruction": text, "output": text}) + "\n")
    (row,) = read(tmp_path / "data.jsonl")
    assert row.texts is not None and row.texts.instruction == text


@pytest.mark.long
def test_how_large_a_row_may_be_can_be_said(cli: Cli, tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b" * size} for size in (10, 1_500_000, 20)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "d.jsonl").write_text("\n\n" + "\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("d.json", "d.jsonl", "d.parquet"):
        told = cli("add", name, "--dataset", name, "--max-row-mb", "1", code=1).stderr
        assert (
            told.startswith(f"recycledb: {name}: row 1 (counted from 0) is larger than 1 MiB") and told.count("\n") == 1
        )
        assert "0 rejected" in cli("add", name, "--max-row-mb", "2", "--dataset", name).stdout
    assert "greater than or equal to 1" in cli("add", "d.json", "--max-row-mb", "0", code=2).stderr


# --- zstd -----------------------------------------------------------------------------------------


def test_zstd_files_of_every_make_are_read(tmp_path: Path) -> None:
    content = b"\n".join(
        json.dumps({"instruction": f"{i}" * (i % 700), "output": f"{i * i}"}).encode() for i in range(900)
    )
    skipped = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    makes = [
        zstandard.ZstdCompressor(level=level, write_checksum=sums, write_content_size=sizes).compress(content)
        for level in (-5, 1, 19)
        for sums in (False, True)
        for sizes in (False, True)
    ]
    streamed = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    makes.append(
        streamed.compress(content[:100])
        + streamed.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        + streamed.compress(content[100:])
        + streamed.flush()
    )
    makes.append(skipped + zstandard.compress(content[:5000]) + skipped + zstandard.compress(content[5000:]) + skipped)
    makes.append(zstandard.compress(b"") + zstandard.compress(content))
    path = tmp_path / "data.zst"
    for make in makes:
        path.write_bytes(make)
        assert sum(1 for row in read(path) if row.texts) == 900
    for length in range(0, len(makes[-2]), 997):
        path.write_bytes(makes[-2][:length])
        try:
            assert sum(1 for _ in read(path)) < 900
        except FormatError as error:
            assert "\n" not in str(error)


def test_a_zstd_window_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "data.zst"
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, 18 << 3]) + b"\x01\x00\x00"  # a window of 2^28, an empty last block
    path.write_bytes(frame)
    with pytest.raises(
        FormatError, match=r"needs a zstd window of over 128 MiB: decompress it first, with `zstd -d --long=31`"
    ):
        read(path)


# --- Parquet --------------------------------------------------------------------------------------

YEARS = pa.array([2**62], pa.timestamp("us"))
ODD: list[tuple[Any, Any]] = [  # a column's one value, and what is kept of it
    (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    (pa.array([-1], pa.timestamp("ns")), "1969-12-31 23:59:59.999999999"),
    (pa.array([1_001], pa.timestamp("ns", tz="Europe/Berlin")), "1970-01-01 01:00:00.000001001+01:00"),
    (pa.array([1], pa.timestamp("us", tz="Mars/Olympus")), "1970-01-01 00:00:00.000001+00:00"),
    (pa.array([1], pa.timestamp("ms")), "1970-01-01 00:00:00.001000"),
    (YEARS, 2**62),
    (pa.array([2**31 - 1], pa.int32()).view(pa.date32()), 2**31 - 1),
    (pa.array([1], pa.duration("ns")), "0:00:00.000000001"),
    (pa.array([2**62], pa.duration("s")), 2**62),
    (pa.array([[1]], pa.list_(pa.timestamp("ns"))), ["1970-01-01 00:00:00.000000001"]),
    (pa.array([{"a": 1}], pa.struct([("a", pa.timestamp("ns"))])), {"a": "1970-01-01 00:00:00.000000001"}),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.timestamp("ns"))), [["k", "1970-01-01 00:00:00.000000001"]]),
    (pa.array([Decimal("1.50")]), "1.50"),
    (pa.array([b"\xff"]), "/w=="),
    (pa.array([None], pa.timestamp("ns")), None),
]


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"instruction": ["a"], "output": ["b"], **columns}), path)
    return path


@pytest.mark.parametrize(("column", "kept"), ODD, ids=lambda value: str(getattr(value, "type", "")))
def test_parquet_s_odd_values_are_kept_as_json(tmp_path: Path, column: Any, kept: Any) -> None:
    (row,) = read(parquet(tmp_path / "d.parquet", x=column))
    assert row.texts is not None and row.extra == {"x": kept}


def test_they_are_kept_alike_without_pandas(tmp_path: Path) -> None:
    columns = {f"x{number}": column for number, (column, _) in enumerate(ODD)}
    path = parquet(tmp_path / "d.parquet", **columns)
    blocked = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] == 'pandas': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import json; from pathlib import Path; from recycledb.formats import read\n"
        "print(json.dumps(next(iter(read(Path(sys.argv[1])))).extra))"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == {f"x{number}": kept for number, (_, kept) in enumerate(ODD)}


def test_an_odd_text_rejects_its_row_only(tmp_path: Path) -> None:
    table = pa.table({"instruction": pa.array([YEARS[0].value, 1], pa.timestamp("us")), "output": ["a", "b"]})
    pq.write_table(table, tmp_path / "moments.parquet")
    with pytest.raises(FormatError, match="no text in 'instruction' but a number"):
        list(read(tmp_path / "moments.parquet"))
    raw = pa.array([b"good", b"caf\xe9", b"good"]).view(pa.string())
    moments = pa.array([1, 2**62, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"instruction": raw, "output": raw, "x": moments}), tmp_path / "mixed.parquet")
    rows = list(read(tmp_path / "mixed.parquet"))
    assert [row.extra.get("x") for row in rows] == ["1970-01-01 00:00:00.000001", None, 2**62]
    assert [bool(row.texts) for row in rows] == [True, False, True] and "not UTF-8" in str(rows[1].reason)


@pytest.mark.long
def test_one_long_text_repeated_is_refused_before_it_is_built(tmp_path: Path) -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 3, pa.int32()), pa.array(["x" * (65 << 20)]))
    pq.write_table(pa.table({"instruction": long, "output": ["b"] * 3}), tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").stat().st_size < 5 << 20
    with pytest.raises(FormatError, match=r"row 0 .* is larger than 64 MiB"):
        list(read(tmp_path / "d.parquet"))


@pytest.mark.slow  # it writes a gigabyte
def test_a_compressed_parquet_file_unpacks_to_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    zstd(tmp_path / "d.parquet.zst", (b"PAR1", 1), (b"\0", 1100 << 20))
    with pytest.raises(FormatError, match="decompresses to over 1024 MiB: decompress it first"):
        list(read(tmp_path / "d.parquet.zst"))
