"""Read many rows as plain tuples, a list at a time, without holding all of them."""

import secrets
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection

from recycledb.store.backend import Row

READ_ROWS = 2_000


def stream(conn: Connection, sql: str, values: Row = (), size: int = READ_ROWS) -> Iterator[list[Row]]:
    """Yield the rows of a SELECT with `?` marks in lists, as the driver returns them: handling each row takes as long as reading it."""
    cursor: Any
    if (
        conn.dialect.name == "postgresql"
    ):  # whose driver reads a whole result at once, unless it is a cursor of the server
        conn.exec_driver_sql("SELECT 1")  # begins the transaction with its settings
        raw: Any = conn.connection.driver_connection
        with raw.cursor(f"stream_{secrets.token_hex(4)}") as cursor:
            cursor.execute(raw.cursor().mogrify(sql.replace("%", "%%").replace("?", "%s"), values) if values else sql)
            while rows := cursor.fetchmany(size):
                yield rows
        return
    cursor = conn.exec_driver_sql(sql, values).cursor
    while rows := cursor.fetchmany(size):
        yield rows
