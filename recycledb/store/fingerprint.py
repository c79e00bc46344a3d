"""The fingerprint of what a store holds: what is derived from the store's rows is valid as long as it is the same.

Rows are only added, and each has a digest of its other columns. So two moments with the same number of rows in each table and the same
sums of digests have the same rows. Where rows contain texts or vectors, reading the digests would mean reading those: there the number of
rows and the largest key count, and the digests of the rows that refer to them (`place`, `extraction`) by keys that are hashes of the texts.
"""

import hashlib
import json

from sqlalchemy import Connection, text

from recycledb.store.digest import COLUMN
from recycledb.store.tables import metadata

_WITH_TEXTS = {"sample", "variant", "reply", "repeated_reply", "attempt", "embedding", "readout"}
_WITHOUT = {"worker", "lease"}  # change while nothing that is shown does
_MODULUS = 4_294_967_291  # the largest prime below 2^32: a sum of a billion remainders fits in 64 bits


def fingerprint(conn: Connection) -> str:
    """Return the fingerprint of what a connection's transaction sees."""
    found = {}
    for name, table in sorted(metadata.tables.items()):
        if name in _WITHOUT:
            continue
        key = next(iter(table.primary_key.columns)).name
        summed = name not in _WITH_TEXTS and COLUMN in table.columns
        state = f"sum({COLUMN} % {_MODULUS})" if summed else f"max({key})"
        found[name] = [str(each) for each in conn.execute(text(f"SELECT count(*), {state} FROM {name}")).one()]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
