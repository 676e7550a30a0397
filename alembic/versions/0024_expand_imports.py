"""Let an export be imported where it came from, whether its conversation is still there, has grown, or was deleted.

The function of the previous release stays until it is gone.

Locks: none.
"""

from alembic import op

from exai.db.migrate import create_functions

revision = "0024"
down_revision = "0023"

FUNCTIONS = ("import_v2",)


def upgrade() -> None:
    create_functions(FUNCTIONS)


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"drop function if exists exai.{name}")
