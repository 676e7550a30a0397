"""Keep the bytes of files in the database, and let several files have the same content.

Until now a file was its content: a second name for the same bytes was dropped, and deleting one took the other away.
From here on the digest, the size and the place of the bytes belong to a content, of which an owner has one; name, media
type and links belong to files. Bytes are kept in parts, which are stored outside their rows and uncompressed, so that a
piece of one can be read without the rest.

A file that has no content yet was stored before: its bytes are in the local directory of the daemon that stored it,
under its storage path, and stay readable there. A file_put of the previous release is refused from here on.

Locks: dropping the key of files waits for the table's users and holds them back for an instant.
"""

from alembic import op
from alembic.util import CommandError

from exai.db.migrate import create_functions, create_index, drop_index, take_locks

revision = "0019"
down_revision = "0018"

FUNCTIONS = ("blob_size_v1", "put_files_v1", "sweep_contents_v1")

TABLES = {
    "blobs": """
    create table exai.blobs (
        id uuid not null,
        size_bytes bigint not null,
        begun_at timestamptz not null default now(),
        constraint blobs_pkey primary key (id),
        constraint blobs_size_check check (size_bytes >= 0)
    )
    """,
    "blob_parts": """
    create table exai.blob_parts (
        blob_id uuid not null,
        number integer not null,
        characters integer not null,
        data bytea not null,
        constraint blob_parts_pkey primary key (blob_id, number),
        constraint blob_parts_blob_fkey foreign key (blob_id) references exai.blobs (id) on delete cascade,
        constraint blob_parts_size_check check (octet_length(data) between 1 and 1048576)
    )
    """,
    "contents": """
    create table exai.contents (
        owner text not null,
        sha256 text not null,
        size_bytes bigint not null,
        store text not null,
        storage_path text,
        blob_id uuid,
        encoding text,
        used_at timestamptz not null default now(),
        constraint contents_pkey primary key (owner, sha256),
        constraint contents_blob_fkey foreign key (blob_id) references exai.blobs (id),
        constraint contents_sha256_check check (sha256 ~ '^[0-9a-f]{64}$'),
        constraint contents_place_check check (
            (store = 'postgres') = (blob_id is not null) and (store = 'postgres') = (storage_path is null))
    )
    """,
}

KEY = "files_owner_sha256_key"


def upgrade() -> None:
    # First, since it commits what came before.
    create_index("public", "files_content_idx", "public.files (owner, sha256)")
    for name, statement in TABLES.items():
        op.execute(statement)
        op.execute(f"alter table exai.{name} enable row level security")
    op.execute("alter table exai.blob_parts alter column data set storage external")
    op.execute("create unique index contents_blob_idx on exai.contents (blob_id)")
    op.execute("create index contents_storage_path_idx on exai.contents (storage_path) where storage_path is not null")
    create_functions(FUNCTIONS)
    take_locks("files")
    op.execute(f"alter table public.files drop constraint if exists {KEY}")


def downgrade() -> None:
    """Refuses where bytes would be lost, or where two files have one content."""
    if op.get_bind().exec_driver_sql("select exists (select from exai.contents)").scalar():
        raise CommandError("exai.contents holds rows, and the previous release cannot read the bytes of their files")
    drop_index("public", "files_content_idx")
    take_locks("files")
    op.execute(f"alter table public.files add constraint {KEY} unique (owner, sha256)")
    for name in reversed(FUNCTIONS):
        op.execute(f"drop function if exists exai.{name}")
    for name in reversed(TABLES):
        op.execute(f"drop table if exists exai.{name}")
