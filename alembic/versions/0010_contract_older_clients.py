"""Let the keys speak where an older system's tables were taken over: what helped its clients meanwhile goes.

From here on a message without a conversation, a name used twice and a link that is there already are refused as they
are everywhere else. Roles and contents that older clients write are still made to fit. Nothing to do where no table was
taken over, except to keep a function in public from roles that get every function there by default.

Locks: an instant's exclusive lock on each old table.
"""

from alembic import op

from exai.db.migrate import take_locks

revision = "0010"
down_revision = "0009"

TRIGGERS = {
    "exai_home": ("messages", "home_message_v1()"),
    "exai_name": ("conversations", "name_conversation_v1()"),
    "zz_exai_keep": ("conversations", "keep_time_v1()"),
    "exai_set_aside": ("conversation_files", "set_aside_link_v1()"),
}
CLEANUP = "public.cleanup_orphaned_files(interval, integer)"
GRANT = f"""
do $$
declare
  v_role text;
begin
  for v_role in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
    execute format('revoke all on function {CLEANUP} from %I', v_role);
  end loop;
  for v_role in select rolname from pg_catalog.pg_roles where rolname = 'service_role' loop
    execute format('grant execute on function {CLEANUP} to %I', v_role);
  end loop;
end
$$
"""


def upgrade() -> None:
    adopted = {row[0] for row in op.get_bind().exec_driver_sql("select name from exai.adopted_tables").fetchall()}
    changed = [table for table in ("conversation_files", "messages", "conversations") if table in adopted]
    if changed:
        take_locks(*changed)
    for name, (table, function) in TRIGGERS.items():
        op.execute(f"drop trigger if exists {name} on public.{table}")
        op.execute(f"drop function if exists exai.{function}")
    op.execute("drop function if exists exai.recover_conversation_v1")
    op.execute(GRANT)


def downgrade() -> None:
    """What is gone helped only those who wrote while the tables were taken over."""
