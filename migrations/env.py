"""Alembic's entry point: run the revisions on the connection that `recycledb.store` passes in.

There is no alembic.ini and no URL here: a migration runs only through `recycledb db upgrade`, which has made a copy first.
"""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
    finish = getattr(context.get_context().impl, "finish", None)  # PostgreSQL creates the views last
    if finish is not None:
        finish()
