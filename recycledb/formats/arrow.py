"""Rows to Arrow, for Parquet files and for data frames.

Invariant: a column's type fits all its values. Integers mixed with floats are floats, decimals keep every digit; any other mixture
(SQLite's columns have no types), values that Arrow has no type for, and a column without a value are text.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

from recycledb.errors import WriteError
from recycledb.formats.values import flat, plain

if TYPE_CHECKING:
    import pyarrow as pa

Values = Sequence[Any]

BATCH_ROWS = 1 << 16
BATCH_BYTES = 1 << 26  # of text
SPOOL_BYTES = 1 << 24
_KNOWN = (str, int, float, bytes, list, dict, Decimal, date, datetime, time_of_day)


def to_table(columns: Sequence[str], rows: Iterable[Values]) -> "pa.Table":
    """Return the rows as a `pyarrow.Table`."""
    import pyarrow as pa

    chunks: list[list[Any]] = [[] for _ in columns]
    for batch in _batches(rows):
        for column, values in zip(chunks, zip(*batch, strict=True), strict=True):
            column.append(_array(values))
    types = [_joint_type([chunk.type for chunk in column]) for column in chunks]
    arrays = [
        pa.chunked_array([_cast(chunk, kind) for chunk in column], type=kind)
        for column, kind in zip(chunks, types, strict=True)
    ]
    return pa.table(arrays, names=list(columns))


def write_parquet(stream: IO[bytes], columns: list[str], rows: Iterable[Values]) -> int:
    """Write rows as Parquet and return their number; `columns` may grow meanwhile, and rows from before then are shorter.

    In two passes, the first into a spool on disk, since a column's type is only known after its last row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    seen: list[set[Any]] = []
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for batch in _batches(rows):
            count += len(batch)
            arrays = [_array([_at(row, i) for row in batch]) for i in range(len(columns))]
            seen.extend(set() for _ in columns[len(seen) :])
            for types, array in zip(seen, arrays, strict=True):
                types.add(array.type)
            _spool(spool, arrays)
        spool.seek(0)
        seen.extend(set() for _ in columns[len(seen) :])
        schema = pa.schema([(name, _joint_type(types)) for name, types in zip(columns, seen, strict=True)])
        with pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True) as writer:
            for arrays in _spooled(spool):
                rows_in = len(arrays[0])
                missing = [pa.nulls(rows_in) for _ in columns[len(arrays) :]]
                whole = [_cast(array, kind) for array, kind in zip([*arrays, *missing], schema.types, strict=True)]
                writer.write_batch(pa.record_batch(whole, schema=schema))
    return count


def _at(row: Values, i: int) -> Any:
    return row[i] if i < len(row) else None


def _batches(rows: Iterable[Values]) -> Iterator[list[Values]]:
    """Yield the rows in lists of bounded length and size of text."""
    rows = iter(rows)
    batch: list[Values] = []
    size = 0
    while some := list(islice(rows, 256)):
        batch += some
        size += sum(len(value) for row in some for value in row if isinstance(value, str | bytes))
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _spool(spool: IO[bytes], arrays: list[Any]) -> None:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    batch = pa.record_batch(arrays, names=[str(i) for i in range(len(arrays))])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    try:
        spool.write(len(data).to_bytes(8, "big"))
        spool.write(data)
    except OSError as error:
        where = tempfile.gettempdir()
        raise WriteError(
            f"cannot store the rows of a Parquet file in {where}: {error.strerror}; set $TMPDIR to another folder"
        ) from error


def _spooled(spool: IO[bytes]) -> Iterator[list[Any]]:
    import pyarrow as pa

    while size := spool.read(8):
        with pa.ipc.open_stream(spool.read(int.from_bytes(size, "big"))) as reader:
            yield reader.read_next_batch().columns


def _array(values: Iterable[Any]) -> "pa.Array":
    import pyarrow as pa

    known = [_known(value) for value in values]
    try:
        return pa.array(known)
    # Numbers mixed with texts, or values that Arrow has no type for: integers of over 64 bits, a list of UUIDs.
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.array([None if value is None else str(flat(value)) for value in known])


def _known(value: Any) -> Any:
    if isinstance(value, time_of_day) and value.tzinfo is not None:  # Arrow has no such type and would drop the zone
        return value.isoformat()
    return value if value is None or isinstance(value, _KNOWN) else plain(value)


def _joint_type(found: Iterable[Any]) -> Any:
    import pyarrow as pa

    types = {each for each in found if not pa.types.is_null(each)}
    if len(types) == 1:
        return types.pop()
    if types == {pa.int64(), pa.float64()}:
        return pa.float64()
    if types and all(pa.types.is_decimal(each) for each in types):
        scale = max(each.scale for each in types)
        digits = scale + max(each.precision - each.scale for each in types)
        return pa.decimal128(digits, scale) if digits <= 38 else pa.string()
    return pa.string()


def _cast(array: Any, kind: Any) -> Any:
    import pyarrow as pa

    try:
        return array.cast(kind)
    except pa.ArrowNotImplementedError:  # for example a list as text
        return pa.array([None if value is None else str(flat(value)) for value in array.to_pylist()], type=kind)
