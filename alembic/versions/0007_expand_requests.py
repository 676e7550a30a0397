"""Add requests, which clients store and a daemon answers, and give Supabase's roles the rights they should have.

A client that cannot reach a daemon inserts a row into `public.requests`, for example over Supabase's API, and reads the
answer there. The roles of that API, and `exai_app` for the service, receive their rights if they exist;
`exai supabase grant` does the same when they are created later. Tables of an older system keep theirs.

Locks: each table exclusively while its policies are created, for milliseconds.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.migrations.migrate import create_functions, create_triggers, in_one_trip, read_script, take_locks

revision = "0007"
down_revision = "0006"

FUNCTIONS = (
    "admit_requests_v1", "note_request_v1", "shared_page_v1", "announce_change_v1", "grant_access_v1", "announce_v1",
)  # fmt: skip
TRIGGERS = ("exai_admit_requests", "exai_note_request")
PAGE = "public.exai_page(text, bigint, integer)"
INDEXES = (
    "create index requests_queue_idx on public.requests (owner, created_at, id) where state = 'queued'",
    "create index requests_running_idx on public.requests (owner) where state = 'running'",
    "create index requests_recent_idx on public.requests (owner, created_at desc, id desc)",
    "create index requests_aged_idx on public.requests (created_at)",
    "create index requests_read_idx on public.requests (read_at) where read_at is not null",
)
LOCKED = ("conversations", "messages", "turns", "files", "conversation_files")
"""The tables with many users. They are locked together, before the function creates the policies of any."""

METRICS = "monitoring.metrics_raw"
"""Locked with its partitions, in the order in which writers lock them."""

HAS_ROLES = """
select exists (select from pg_catalog.pg_roles r
                where r.rolname in ('anon', 'authenticated', 'service_role', 'exai_app'))
    or to_regnamespace('realtime') is not null
"""
POLICIES = """
select format('drop policy %I on %s', p.polname, p.polrelid::regclass)
  from pg_catalog.pg_policy p
 where p.polname in ('exai_own', 'exai_ask', 'exai_cancel_or_read', 'exai_named', 'exai_app')
   and p.polrelid::regclass::text <> 'realtime.messages'
"""
RIGHTS = """
select format('revoke all on %s from %I', c.oid::regclass, r.rolname)
  from pg_catalog.pg_class c, pg_catalog.pg_roles r
 where c.relnamespace = 'public'::regnamespace and r.rolname in ('authenticated', 'service_role', 'exai_app')
   and c.relname in ('conversations', 'messages', 'turns', 'files', 'conversation_files')
   and not exists (select from exai.adopted_tables a where a.name = c.relname)
 union all
select format('revoke all on schema %s from %I', s.name, r.rolname)
  from pg_catalog.pg_roles r, (values ('exai'), ('monitoring')) s(name)
 where r.rolname in ('authenticated', 'exai_app')
"""


def upgrade() -> None:
    bind = op.get_bind()
    if bind.exec_driver_sql("select to_regclass('public.requests') is not null").scalar():
        raise CommandError("public.requests is there already and is not EXAI's; rename it first")
    op.execute("select set_config('timezone', 'UTC', true)")
    in_one_trip([read_script("tables", "requests"), *INDEXES, "alter table public.requests enable row level security"])
    create_functions(FUNCTIONS)
    op.execute(read_script("functions", "exai_page"))
    op.execute(f"revoke all on function {PAGE} from public")
    create_triggers(TRIGGERS)
    op.execute("alter table exai.alembic_version enable row level security")
    if bind.exec_driver_sql(HAS_ROLES).scalar():
        take_locks(*LOCKED, METRICS)
    op.execute("select exai.grant_access_v1(), exai.announce_v1()")


def downgrade() -> None:
    bind = op.get_bind()
    if bind.exec_driver_sql("select 1 from public.requests limit 1").fetchall():
        raise CommandError("public.requests holds rows, which would be lost; remove them first")
    take_locks(*LOCKED)
    op.execute("select exai.announce_v1(false)")
    for query in (POLICIES, RIGHTS):
        in_one_trip([row[0] for row in bind.exec_driver_sql(query).fetchall()])
    op.execute(f"drop function {PAGE}")
    op.execute("drop function exai.shared_page_v1")
    op.execute("drop table public.requests")
    in_one_trip([f"drop function exai.{name}" for name in FUNCTIONS if name != "shared_page_v1"])
    op.execute("alter table exai.alembic_version disable row level security")
