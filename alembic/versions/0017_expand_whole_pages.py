"""Let a page of messages come as one value, in the form in which the cache holds it.

The function of the previous release stays until it is gone.

Locks: none.
"""

from alembic import op

from exai.db.migrate import create_functions

revision = "0017"
down_revision = "0016"

FUNCTIONS = ("message_line_v1", "read_page_v2")


def upgrade() -> None:
    create_functions(FUNCTIONS)


def downgrade() -> None:
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
