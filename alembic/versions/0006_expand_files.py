"""Let files be found by their age, and forgotten once nobody has them.

The older system had a cleanup_orphaned_files() of its own, without a grace period; its callers get the new one,
whatever the old one returned.

Locks: adding a column waits for the table's users and holds them back for an instant.
"""

from alembic import op

from exai.db.migrate import create_index, drop_index, scripts_directory

revision = "0006"
down_revision = "0005"

CLEANUP = "public.cleanup_orphaned_files"
OLDER = """
select format('drop routine %s', p.oid::regprocedure)
  from pg_catalog.pg_proc p
 where p.pronamespace = 'public'::regnamespace and p.proname = 'cleanup_orphaned_files'
"""
"""Any of them: a call without arguments would not know which was meant."""


def upgrade() -> None:
    op.execute("alter table public.files add column if not exists used_at timestamptz not null default now()")
    for (statement,) in op.get_bind().exec_driver_sql(OLDER).fetchall():
        op.execute(statement)
    op.execute((scripts_directory() / "functions" / "cleanup_orphaned_files.sql").read_text("utf-8"))
    op.execute(f"revoke all on function {CLEANUP}(interval, integer) from public")
    create_index("public", "files_recent_idx", "public.files (owner, created_at desc, id desc)")


def downgrade() -> None:
    drop_index("public", "files_recent_idx")
    op.execute(f"drop function if exists {CLEANUP}(interval, integer)")
    op.execute("alter table public.files drop column if exists used_at")
