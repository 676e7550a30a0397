"""Make the functions independent of what others create in schema public, whatever the search_path of their caller is.

A function or operator there that matches the arguments exactly would be called instead of a polymorphic one of
pg_catalog, with our rights (CVE-2018-1058). Functions that only read get a search_path of their own. Those that write
do not, because triggers that others have put on the tables run inside and may rely on the caller's; neither do those
that are to be inlined. They name everything with its schema.

Locks: none.
"""

from alembic import op

from exai.db.migrate import create_functions, scripts_directory

revision = "0021"
down_revision = "0020"

FUNCTIONS = (
    "incarnation_v1",
    "header_v1",
    "turn_v1",
    "message_line_v1",
    "read_page_v1",
    "read_page_v2",
    "read_forward_v1",
    "turn_state_v1",
    "store_turn_v1",
    "append_v1",
    "append_group_v1",
    "begin_turn_v1",
    "finish_turn_v1",
    "fork_v1",
    "fork_v2",
    "import_v1",
    "change_conversation_v1",
    "change_conversation_v2",
    "searchable_v1",
    "searched_v1",
    "matches_v1",
    "search_v1",
    "put_files_v1",
)


def upgrade() -> None:
    create_functions(FUNCTIONS)
    op.execute((scripts_directory() / "functions" / "cleanup_orphaned_files.sql").read_text("utf-8"))


def downgrade() -> None:
    """They do what they did before."""
