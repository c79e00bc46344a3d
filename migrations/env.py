"""Alembic's entry point: run the revisions on the connection that `recycledb.store` passes in.

There is no alembic.ini and no URL here: a migration runs only through `recycledb db upgrade`, which has made a copy first.
"""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
# PostgreSQL's, which creates the views last, and watches who makes it wait.
finish, end = (getattr(context.get_context().impl, name, lambda: None) for name in ("finish", "end"))
try:
    with context.begin_transaction():
        context.run_migrations()
        finish()
finally:
    end()
