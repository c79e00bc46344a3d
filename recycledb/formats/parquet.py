"""Parquet values to Python values, so that one value that Python cannot represent does not stop the reading of the file.

Invariant: the result for a row depends on that row alone, not on other rows and not on whether pandas is installed (pyarrow converts
timestamps with nanoseconds by pandas, and raises without it).
Timestamps and durations that Python cannot represent become text, in UTC if their time zone is unknown here; outside of the years 1 to
9999 they stay the integer that is stored. A value that cannot be read makes its row `Bad`.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from recycledb.formats.values import Bad

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def batch_values(batch: Any) -> list[Any]:
    """Return a batch's rows, each a dictionary or `Bad`."""
    columns = [_column_values(column) for column in batch.columns]
    names = batch.schema.names
    rows = []
    for index in range(batch.num_rows):
        row = {name: column[index] for name, column in zip(names, columns, strict=True)}
        rows.append(next((value for value in row.values() if isinstance(value, Bad)), row))
    return rows


def _column_values(column: Any) -> list[Any]:
    import pyarrow as pa

    if not _has_nanoseconds(column.type):
        try:
            return list(column.to_pylist())
        except (ValueError, OverflowError, TypeError, pa.ArrowException):
            pass  # because of one value, which is found below
    return [_cell(scalar) for scalar in column]


def _has_nanoseconds(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return bool(kind.unit == "ns")
    if pa.types.is_dictionary(kind):
        return _has_nanoseconds(kind.value_type)
    return any(_has_nanoseconds(kind.field(i).type) for i in range(kind.num_fields))


def _cell(scalar: Any) -> Any:
    import pyarrow as pa

    try:
        return _value(scalar)
    except UnicodeDecodeError as error:
        return Bad(f"not UTF-8 ({error.reason})")
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        return Bad(f"a value of the Parquet type {scalar.type}, which cannot be read")


def _value(scalar: Any) -> Any:
    """Return a value as `to_pylist` does, except for timestamps and durations that Python cannot represent."""
    import pyarrow as pa

    readers: tuple[tuple[type, Callable[[Any], Any]], ...] = (
        (pa.MapScalar, lambda it: [[_value(pair[0]), _value(pair[1])] for pair in it.values]),
        (pa.StructScalar, lambda it: {it.type.field(i).name: _value(it[i]) for i in range(it.type.num_fields)}),
        (pa.ListScalar, lambda it: [_value(each) for each in it.values]),  # and its subclasses
        (pa.DictionaryScalar, lambda it: _value(it.value)),
        (pa.ExtensionScalar, lambda it: _value(it.value)),
        (pa.TimestampScalar, _moment),
        (pa.DurationScalar, _span),
        (pa.Scalar, _plain),
    )
    return next(read(scalar) for kind, read in readers if isinstance(scalar, kind)) if scalar.is_valid else None


def _plain(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except OverflowError:  # a date outside of Python's years
        return scalar.value


def _moment(scalar: Any) -> Any:
    """Return a timestamp: as a `datetime` if it fits, else as text with nanoseconds, else as the stored integer."""
    seconds, rest = divmod(scalar.value, _PER_SECOND[scalar.type.unit])
    micros, nanos = divmod(rest * (10**9 // _PER_SECOND[scalar.type.unit]), 1000)
    try:
        whole = _at(seconds, scalar.type.tz)
    except OverflowError:
        return scalar.value
    if not nanos:
        return whole.replace(microsecond=micros)
    text = str(whole)
    return f"{text[:19]}.{micros:06d}{nanos:03d}{text[19:]}"


def _at(seconds: int, zone: str | None) -> datetime:
    import pyarrow as pa

    if zone is None:
        return datetime(1970, 1, 1) + timedelta(seconds=seconds)  # the file has no zone either
    try:
        found: datetime = pa.scalar(seconds, pa.timestamp("s", tz=zone)).as_py()
    except (ValueError, pa.ArrowException):
        found = pa.scalar(seconds, pa.timestamp("s", tz="UTC")).as_py()
    return found


def _span(scalar: Any) -> Any:
    seconds, rest = divmod(scalar.value, _PER_SECOND[scalar.type.unit])
    micros, nanos = divmod(rest * (10**9 // _PER_SECOND[scalar.type.unit]), 1000)
    try:
        whole = timedelta(seconds=seconds)
    except OverflowError:
        return scalar.value
    return f"{whole}.{micros:06d}{nanos:03d}" if nanos else whole + timedelta(microseconds=micros)
