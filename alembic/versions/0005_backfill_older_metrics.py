"""Prepare the raw metrics of an older system to become a partition; the next revision attaches it.

`monitoring.metrics_raw` existed in two shapes, with and without `type` and `timestamp`. Both receive the missing
columns and values, in batches, while their writers continue; a table of any other shape is later renamed and left
unchanged. Does nothing without an older table, and continues where an interrupted run ended.

Locks: an exclusive lock for a moment for each kind of change; a thousand rows at a time; indexes are built
concurrently.
"""

from alembic import op

from exai.db.migrations.adoption import TEXTS, TIMES, Column, columns_of
from exai.db.migrations.migrate import create_index, drop_index, holding, patiently, read_script, until_done

revision = "0005"
down_revision = "0004"

TABLE = "monitoring.metrics_raw"
BOUND = "metrics_raw_bound"
KEY = "metrics_raw_adopted_key"
RECENT = "metrics_raw_adopted_recent_idx"
REQUIRED = ("type", "data", '"timestamp"', "created_at")
TIME_NAMES = ("timestamp", "recorded_at", "processed_at", "created_at")

IS_PLAIN = """
select 1
  from pg_catalog.pg_class c
  join pg_catalog.pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and k.conkey = array[a.attnum]
 where c.oid = to_regclass('monitoring.metrics_raw') and c.relkind = 'r' and not c.relispartition
   and not c.relhassubclass and a.attname = 'id' and a.atttypid = 'pg_catalog.int8'::regtype
   and not exists (select from pg_catalog.pg_constraint f where f.confrelid = c.oid and f.contype = 'f')
   and not exists (select from pg_catalog.pg_attribute g where g.attrelid = c.oid and g.attgenerated <> '')
"""
"""A table of its own with a bigint `id` as its key, to which nothing refers."""

ADDED = {
    "type": ("text", None),
    "data": ("jsonb not null default '{}'", None),
    '"timestamp"': ("timestamptz", "clock_timestamp()"),
    "created_at": ("timestamptz", "clock_timestamp()"),
}

FILL = """
with empty as (
  select m.id from monitoring.metrics_raw m
   where m.type is null or m.data is null or m."timestamp" is null or m.created_at is null
   limit 1000 for update),
filled as (
  update monitoring.metrics_raw m
     set type = coalesce(m.type, m.data ->> 'type'::text, m.data ->> 'name'::text, 'unknown'),
         data = coalesce(m.data, '{{}}'),
         "timestamp" = {time}, created_at = coalesce(m.created_at, {time})
    from empty where m.id = empty.id
  returning 1)
select pg_catalog.count(*) from filled
"""
MOVE = """
with ahead as (
  select m.id from monitoring.metrics_raw m
   where m."timestamp" > pg_catalog.now() + interval '1 day'
   limit 1000 for update),
moved as (
  update monitoring.metrics_raw m
     set "timestamp" = least(m.created_at, pg_catalog.now()),
         data = case pg_catalog.jsonb_typeof(m.data) when 'object' then m.data
                     else pg_catalog.jsonb_build_object('data', m.data) end
                || pg_catalog.jsonb_build_object(
                     'adopted', pg_catalog.jsonb_build_object('timestamp', m."timestamp"::text))
    from ahead where m.id = ahead.id
  returning 1)
select pg_catalog.count(*) from moved
"""
"""A future time would keep the partition open until then; the original is kept in the data."""


def upgrade() -> None:
    if not can_be_attached():
        return
    with holding(TABLE):
        widen()
    create_index(
        "monitoring",
        "metrics_raw_unfilled_idx",
        f'{TABLE} (id) where type is null or data is null or "timestamp" is null or created_at is null',
    )
    names = [f'm."{name}"' for name in TIME_NAMES if name in columns_of(op.get_bind(), "metrics_raw", "monitoring")]
    with patiently(lock_s=4):
        until_done(FILL.format(time=f"coalesce({', '.join([*names, 'pg_catalog.now()'])})"))
        until_done(MOVE)
    drop_index("monitoring", "metrics_raw_unfilled_idx")
    create_index("monitoring", KEY, f'{TABLE} (id, "timestamp")', unique=True)
    create_index("monitoring", RECENT, f'{TABLE} (type, "timestamp" desc)')
    require()


def can_be_attached() -> bool:
    """Return whether the table of an older system exists and can become a partition."""
    bind = op.get_bind()
    if not bind.exec_driver_sql(IS_PLAIN).fetchall():
        return False
    columns = columns_of(bind, "metrics_raw", "monitoring")
    times = all(fits(columns, name, TIMES) for name in TIME_NAMES)
    return times and fits(columns, "type", TEXTS) and fits(columns, "data", ("jsonb",))


def fits(columns: dict[str, Column], name: str, types: tuple[str, ...]) -> bool:
    return name not in columns or columns[name].type in types


def widen() -> None:
    """Add columns and lift length limits; no row is read or written."""
    columns = columns_of(op.get_bind(), "metrics_raw", "monitoring")
    # Times without a zone are taken as UTC, so that the rows need not be rewritten.
    op.execute("select set_config('timezone', 'UTC', true)")
    for name, (definition, default) in ADDED.items():
        found = columns.get(name.strip('"'))
        if found is None:
            op.execute(f"alter table {TABLE} add column {name} {definition}")
        elif found.type in {"character varying", "character"}:
            op.execute(f"alter table {TABLE} alter column {name} type text")
        elif found.type == "timestamp without time zone":
            op.execute(f"alter table {TABLE} alter column {name} type timestamptz")
        if default and not (found and found.filled and found.not_null):
            op.execute(f"alter table {TABLE} alter column {name} set default {default}")
    for name, found in columns.items():
        if name not in {"id", "type", "data", "timestamp", "created_at"} and not found.filled:
            quoted = '"' + name.replace('"', '""') + '"'
            op.execute(f"alter table {TABLE} alter column {quoted} drop not null")
    # Older writers, which do not set a type, continue.
    op.execute(read_script("functions/monitoring", "fill_metric_v1"))
    op.execute("revoke all on function monitoring.fill_metric_v1() from public")
    op.execute(f"""
        create or replace trigger exai_fill before insert on {TABLE} for each row
        when (new.type is null or new.data is null or new.created_at is null or new."timestamp" is null)
        execute function monitoring.fill_metric_v1()
    """)


def require() -> None:
    """Add the constraints of a partition, validated first without blocking other sessions."""
    present = " and ".join(f"{name} is not null" for name in REQUIRED)
    # A week more than the next revision needs, so that rows are accepted even if it has to wait.
    bound = op.get_bind().exec_driver_sql("select (current_date + 8)::text || ' 00:00:00+00'").scalar()
    with holding(TABLE):
        for name, rule in {"metrics_raw_present": present, BOUND: f"\"timestamp\" < '{bound}'"}.items():
            op.execute(f"alter table {TABLE} drop constraint if exists {name}")
            op.execute(f"alter table {TABLE} add constraint {name} check ({rule}) not valid")
    with patiently(lock_s=4):
        op.execute(f"alter table {TABLE} validate constraint metrics_raw_present")
        op.execute(f"alter table {TABLE} validate constraint {BOUND}")
    with holding(TABLE):
        changes = [f"alter column {name} set not null" for name in REQUIRED]
        op.execute(f"alter table {TABLE} {', '.join(changes)}, drop constraint metrics_raw_present")


def downgrade() -> None:
    """Keep the values that were filled in."""
