"""Let a search be narrowed by tags and metadata.

The functions of the previous release stay until it is gone.

Locks: none.
"""

from alembic import op

from exai.db.migrate import create_functions

revision = "0026"
down_revision = "0025"

FUNCTIONS = ("searched_v2", "search_page_v2", "search_v3")


def upgrade() -> None:
    create_functions(FUNCTIONS)


def downgrade() -> None:
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
