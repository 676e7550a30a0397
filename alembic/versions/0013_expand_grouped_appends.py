"""Let appends that come at the same time be stored together.

Locks: none.
"""

from alembic import op

from exai.db.migrate import create_functions

revision = "0013"
down_revision = "0012"

FUNCTIONS = ("append_group_v1",)


def upgrade() -> None:
    create_functions(FUNCTIONS)


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"drop function if exists exai.{name}")
