"""Read no more of a page of messages than an answer can hold.

The function of the previous release stays until it is gone.

Locks: none.
"""

from alembic import op

from exai.db.migrate import create_functions

revision = "0025"
down_revision = "0024"

REPLACED = ("message_line_v1", "read_forward_v1", "begin_turn_v1")
FUNCTIONS = ("read_page_v3",)


def upgrade() -> None:
    create_functions((*REPLACED, *FUNCTIONS))


def downgrade() -> None:
    """The function that was replaced may stay."""
    for name in FUNCTIONS:
        op.execute(f"drop function if exists exai.{name}")
