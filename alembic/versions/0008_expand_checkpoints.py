"""Add the checkpoints of agents: threads, checkpoints, the values of their channels, and what tasks have written.

Values of which each checkpoint of a thread has the same version are stored once. A thread has a revision, as a
conversation has, by which caches know what they hold of it.

Locks: none that clients notice; the tables are new.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.migrations.migrate import create_functions, create_triggers, in_one_trip, read_script

revision = "0008"
down_revision = "0007"

TABLES = ("checkpoint_threads", "checkpoints", "checkpoint_blobs", "checkpoint_writes", "removed_threads")
FUNCTIONS = (
    "note_thread_v1", "thread_head_v1", "clear_threads_v1", "change_thread_v1", "put_checkpoint_v1", "put_writes_v1",
    "sweep_threads_v1", "prune_threads_v1", "copy_thread_v1", "expire_threads_v1",
)  # fmt: skip
"""Each refers only to earlier ones."""

SETTINGS = (
    # What serializers make is seldom smaller when it is compressed, and encrypted bytes never are.
    "alter table exai.checkpoint_blobs alter column value set storage external",
    "alter table exai.checkpoint_writes alter column value set storage external",
)
INDEXES = (
    "create index checkpoint_threads_changed_idx on exai.checkpoint_threads (changed_xid)",
    "create index checkpoint_threads_recent_idx on exai.checkpoint_threads (owner, updated_at desc, id desc)",
    "create index checkpoint_threads_idle_idx on exai.checkpoint_threads (updated_at)"
    " where expires_at is null and deleted_at is null",
    "create index checkpoint_threads_deleted_idx on exai.checkpoint_threads (deleted_at) where deleted_at is not null",
    "create index checkpoint_threads_expires_idx on exai.checkpoint_threads (expires_at) where expires_at is not null",
    "create index checkpoints_recent_idx on exai.checkpoints (owner, checkpoint_id desc, thread desc, namespace desc)",
    "create index checkpoints_run_idx on exai.checkpoints (owner, run_id) where run_id is not null",
    "create index checkpoints_thread_idx on exai.checkpoints (thread, checkpoint_id desc, namespace desc)",
)
"""On tables that are new, and empty."""


def upgrade() -> None:
    op.execute("select set_config('timezone', 'UTC', true)")
    in_one_trip(
        [
            *(read_script("tables", name) for name in TABLES),
            *SETTINGS,
            *INDEXES,
            *(f"alter table exai.{name} enable row level security" for name in TABLES),
        ]
    )
    create_functions(FUNCTIONS)
    create_triggers(("exai_note_thread",))
    op.execute("alter table exai.checkpoint_threads enable always trigger exai_note_thread")
    op.execute("select exai.grant_access_v1()")


def downgrade() -> None:
    bind = op.get_bind()
    if bind.exec_driver_sql("select 1 from exai.checkpoint_threads limit 1").fetchall():
        raise CommandError("exai.checkpoint_threads holds rows, which would be lost; remove them first")
    # A function that takes or returns a row of the table depends on it.
    in_one_trip([f"drop function exai.{name}" for name in reversed(FUNCTIONS) if name != "note_thread_v1"])
    in_one_trip([f"drop table exai.{name}" for name in reversed(TABLES)])
    op.execute("drop function exai.note_thread_v1")
