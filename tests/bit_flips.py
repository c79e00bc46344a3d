"""Flip one bit of a store's file, check the store, and tell what came of it: `python bit_flips.py STORE BACKEND`, told by lines.

Each line on stdin is a bit's number; each on stdout a JSON object: the bit, `outcome`, and what was said. The outcomes:

    refused    the store was not opened: one line says why
    found      `db check` found something
    same       `db check` found nothing, and every row of every table and view is as it was
    changed    `db check` found nothing, but rows differ
    traceback  something else was raised
"""

import hashlib
import json
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

from stores import VIEWS

from recycledb.errors import RecycledbError
from recycledb.integrity import check
from recycledb.store import Store
from recycledb.store.tables import metadata


def shown(store: Store) -> dict[str, str]:
    """Return a hash of each table's and each view's rows."""
    found = {}
    with store.read() as conn:
        for name in (*metadata.tables, *VIEWS):
            rows = sorted(repr(tuple(row)) for row in conn.exec_driver_sql(f"SELECT * FROM {name}"))
            found[name] = hashlib.sha256("\n".join(rows).encode(errors="surrogatepass")).hexdigest()
    return found


def outcome(url: str, before: dict[str, str]) -> tuple[str, str]:
    """Open and check a store; return what came of it, and what was said."""
    try:
        with Store.open(url) as store:
            checked = check(store)
            if checked.findings:
                return "found", checked.findings[0]
            now = shown(store)
        differing = [name for name in before if now[name] != before[name]]
        return ("changed", ", ".join(differing)) if differing else ("same", "")
    except RecycledbError as error:
        return ("refused" if "\n" not in str(error) else "traceback"), str(error)
    except Exception:  # what must not happen is what is looked for
        return "traceback", traceback.format_exc()


def main() -> None:
    """Flip the bits that are asked for, one at a time."""
    source, backend = Path(sys.argv[1]), sys.argv[2]
    content = bytearray(source.read_bytes())
    with TemporaryDirectory() as folder:
        path = Path(folder, "store.db")
        url = f"{backend}:///{path}"
        path.write_bytes(content)
        with Store.open(url) as store:
            before = shown(store)
        for line in sys.stdin:
            bit = int(line)
            content[bit // 8] ^= 1 << bit % 8
            for other in path.parent.iterdir():
                if other != path:
                    other.unlink()
            path.write_bytes(content)
            content[bit // 8] ^= 1 << bit % 8
            what, said = outcome(url, before)
            print(json.dumps({"bit": bit, "outcome": what, "said": said}), flush=True)


if __name__ == "__main__":
    main()
