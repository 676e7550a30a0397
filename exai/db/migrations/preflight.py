"""Check a database before its first migration, and refuse one that cannot be migrated.

Invariant: a refusal comes before any change, and names every object that prevents the migration, with its cure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import DBAPIError

from exai.db.driver.translate import DEPENDENCY
from exai.db.driver.writability import READ_ONLY_CURE, REPLICA_CURE
from exai.db.migrations.adoption import INDISPENSABLE, TABLES, TEXTS, TIMES, UUID_TYPE, WANTED, columns_of
from exai.errors import SchemaMismatch

OLDEST_VERSION: Final = 140_000

NAMES: Final = (*TABLES, "turns", "requests")
METRICS: Final = "monitoring.metrics_raw"
METRIC_COLUMNS: Final = ("type", "timestamp", "created_at")

SERVER: Final = """
select pg_catalog.current_setting('server_version_num')::integer as version,
       pg_catalog.current_setting('server_version')::text as version_text,
       pg_catalog.current_setting('server_encoding')::text as encoding,
       pg_catalog.current_setting('transaction_read_only')::boolean as is_read_only,
       pg_catalog.pg_is_in_recovery() as is_replica,
       current_user::text as role, pg_catalog.current_database()::text as database,
       pg_catalog.to_regclass('exai.alembic_version') is not null as has_revision,
       pg_catalog.to_regnamespace('exai') is not null as has_schema,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create') as may_create_schema,
       pg_catalog.to_regnamespace('public') is not null as has_public,
       coalesce(pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('public'), 'create'), false)
         as may_create_in_public,
       coalesce(pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('exai'), 'create'), true)
         as may_create_in_exai,
       coalesce(pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('monitoring'), 'create'), true)
         as may_create_in_monitoring
"""
IS_MIGRATED: Final = "select exists (select from exai.alembic_version)"

RELATIONS: Final = """
select c.oid::bigint as oid, n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind,
       c.relpersistence::text as persistence, pg_catalog.pg_get_userbyid(c.relowner)::text as owner,
       pg_catalog.pg_has_role(c.relowner, 'usage') as is_owned,
       c.reloftype <> 0 as is_typed, pg_catalog.row_security_active(c.oid) as is_hidden,
       c.relispartition or exists (select from pg_catalog.pg_inherits i where c.oid in (i.inhrelid, i.inhparent))
         as inherits,
       array(select r.rulename::text from pg_catalog.pg_rewrite r where r.ev_class = c.oid and r.rulename <> '_RETURN')
         as rules
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c', 'i', 'I')
   and ((n.nspname = 'public' and c.relname = any($1::text[]))
        or (n.nspname = 'monitoring' and c.relname = any($2::text[])))
 order by 2, 3
"""
METRIC_NAMES: Final = (
    "metrics_raw", "metrics_raw_default", "metrics_1min", "metrics_1hour", "metrics_processing_log",
)  # fmt: skip
KINDS: Final = {
    "p": "a partitioned table", "v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence",
    "c": "a type", "i": "an index", "I": "an index",
}  # fmt: skip
FIXED: Final = """
select a.attname::text as name, case when a.attgenerated <> '' then 'a generated column' else 'an identity column' end
  from pg_catalog.pg_attribute a
 where a.attrelid = $1::bigint::oid and a.attnum > 0 and not a.attisdropped and a.attname = any($2::text[])
   and (a.attgenerated <> '' or a.attidentity = 'a')
"""
DEPENDENTS: Final = """
select distinct a.attname::text as name,
       pg_catalog.pg_describe_object(d.classid, d.objid, case when d.classid = 'pg_catalog.pg_class'::regclass
                                                              then d.objsubid else 0 end) as object
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_depend d
    on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
 where a.attrelid = $1::bigint::oid and a.attname = any($2::text[])
   and (d.classid in ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_policy'::regclass,
                      'pg_catalog.pg_trigger'::regclass, 'pg_catalog.pg_proc'::regclass,
                      'pg_catalog.pg_publication_rel'::regclass)
        or (d.classid in ('pg_catalog.pg_attrdef'::regclass, 'pg_catalog.pg_class'::regclass)
            and exists (select from pg_catalog.pg_attribute g
                          left join pg_catalog.pg_attrdef f on f.adrelid = g.attrelid and f.adnum = g.attnum
                         where g.attrelid = a.attrelid and g.attgenerated <> ''
                           and ((d.classid = 'pg_catalog.pg_attrdef'::regclass and f.oid = d.objid)
                                or (d.objid = a.attrelid and d.objsubid = g.attnum and g.attnum <> a.attnum)))))
   and not exists (select from pg_catalog.pg_trigger t
                    where d.classid = 'pg_catalog.pg_trigger'::regclass and t.oid = d.objid and t.tgisinternal)
"""
ROUTINES: Final = """
select p.oid::regprocedure::text as name, pg_catalog.pg_get_userbyid(p.proowner)::text as owner,
       pg_catalog.pg_has_role(p.proowner, 'usage') as is_owned,
       array(select pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid)
               from pg_catalog.pg_depend d
              where d.refclassid = 'pg_catalog.pg_proc'::regclass and d.refobjid = p.oid and d.deptype = 'n') as users
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where (n.nspname = 'public' and p.proname = 'cleanup_orphaned_files')
    or (n.nspname = 'monitoring' and p.proname = any($1::text[]))
"""
ROUTINE_NAMES: Final = (
    "insert_metric", "aggregate_metrics", "get_recent_metrics", "create_partitions", "apply_retention",
    "refresh_metrics_views",
)  # fmt: skip

KEYED: Final = ("conversations", "files")
HAS_KEY: Final = """
select 1 from pg_catalog.pg_index i
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
 where i.indrelid = $1::bigint::oid and i.indisunique and i.indnkeyatts = 1 and i.indpred is null and i.indisvalid
   and a.attname = 'id'
"""
BAD_IDS: Final = {
    table: f"select 1 from public.{table} group by id having pg_catalog.count(*) > 1 or id is null limit 1"  # noqa: S608
    for table in KEYED
}

UPDATED: Final = ("conversations", "messages", "files")
"""Tables of which migrations update every row."""

GUARDED: Final = """
select 1 from pg_catalog.pg_trigger t
 where t.tgrelid = $1::bigint::oid and not t.tgisinternal and t.tgenabled in ('O', 'A') and t.tgtype & 16 <> 0
"""
UNLIMITED: Final = "select pg_catalog.set_config('statement_timeout', '0', true)"
BAD_DIGESTS: Final = """
select 1 from public.files where sha256 !~ '^[0-9a-f]{64}$' union all
(select 1 from public.files where sha256 is not null group by sha256 having pg_catalog.count(*) > 1) limit 1
"""
PASSING: Final = ("55P03", "57014", "40P01", "40001")
"""Errors caused by a lock or a timeout."""

IMMEDIATE: Final = "set constraints all immediate"
LIFT: Final = "disable it for the migration, or let it pass updates"

REMAKE: Final = "drop it, migrate, and create it again"


def check(connection: Connection) -> None:
    """Refuse a database that cannot be migrated in its current state. Tables are checked before the first run only.

    Raises:
        SchemaMismatch: lists all objects that prevent the migration.

    """
    server = dict(connection.exec_driver_sql(SERVER).mappings().one())
    # A failed earlier attempt may have left an empty version table.
    server["is_migrated"] = bool(server["has_revision"] and connection.exec_driver_sql(IS_MIGRATED).scalar())
    problems = list(_server_problems(server))
    if not problems and not server["is_migrated"]:
        problems = list(_table_problems(connection))
    if problems:
        found = "; ".join(f"{problem} ({cure})" for problem, cure in problems)
        raise SchemaMismatch(DEPENDENCY, f"nothing was changed: {found}", "Then run it again")


def _server_problems(server: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    role = server["role"]
    if server["version"] < OLDEST_VERSION:
        yield f"the server is Postgres {server['version_text']}, EXAI needs 14 or newer", "upgrade it"
    if server["is_replica"]:
        yield "the server is a read replica", REPLICA_CURE
    elif server["is_read_only"]:
        yield "the database only takes reads", READ_ONLY_CURE
    if server["encoding"] != "UTF8" and not server["is_migrated"]:
        yield f"the database's encoding is {server['encoding']}", "make one with encoding 'UTF8'"
    if not server["has_schema"] and not server["may_create_schema"]:
        database = server["database"]
        yield f"{role} may not create a schema", f'grant create on database "{database}" to "{role}"'
    if not server["has_public"]:
        yield "there is no schema public", "create schema public"
    elif not server["is_migrated"] and not server["may_create_in_public"]:
        yield f"{role} may not create tables in schema public", f'grant create on schema public to "{role}"'
    for schema in ("exai", "monitoring"):
        if not server[f"may_create_in_{schema}"]:
            yield f"{role} may not create in schema {schema}", f'grant create on schema {schema} to "{role}"'


def _table_problems(connection: Connection) -> Iterator[tuple[str, str]]:
    rows = connection.exec_driver_sql(RELATIONS, (list(NAMES), list(METRIC_NAMES))).mappings().all()
    for row in rows:
        name = f"{row['schema']}.{row['name']}"
        if not row["is_owned"]:
            yield f"{name} belongs to {row['owner']}", f"migrate as {row['owner']}, or change its owner"
        if row["schema"] == "public":
            yield from _relation_problems(connection, row, name)
        elif name == METRICS and row["kind"] == "r":
            yield from _dependents(connection, row["oid"], name, _changed_metrics(connection))
        if row["kind"] == "r" and row["name"] in UPDATED:
            yield from _update_problems(connection, row, name)
    routines = connection.exec_driver_sql(ROUTINES, (list(ROUTINE_NAMES),)).mappings().all()
    for row in routines:
        if not row["is_owned"]:
            yield f"function {row['name']} belongs to {row['owner']}", f"migrate as {row['owner']}, or drop it"
        for user in row["users"]:
            yield f"{user} uses function {row['name']}, which EXAI replaces", REMAKE


def _relation_problems(connection: Connection, row: RowMapping, name: str) -> Iterator[tuple[str, str]]:
    if row["kind"] != "r":
        yield f"{name} is {KINDS[row['kind']]}, EXAI needs a table of that name", "rename it"
        return
    if row["name"] not in TABLES:
        yield f"{name} is there already and is not EXAI's", "rename it"
        return
    if row["inherits"]:
        yield f"{name} takes part in inheritance or partitioning", "make it a table of its own, or rename it"
    if row["persistence"] != "p":
        yield f"{name} is not a permanent table", f"alter table {name} set logged"
    if row["is_typed"]:
        yield f"{name} is a typed table, to which no column can be added", f"alter table {name} not of"
    if row["is_hidden"]:
        yield f"row level security hides rows of {name} from this role", "migrate as a role that it spares"
    for rule in row["rules"]:
        yield f"rule {rule} on {name} rewrites statements", "drop it"
    for column, kind in connection.exec_driver_sql(FIXED, (row["oid"], list(WANTED[row["name"]]))).fetchall():
        yield f"{name}.{column} is {kind}, EXAI writes it", "drop the expression, or rename the column"
    yield from _type_problems(connection, row["name"])
    yield from _id_problems(connection, row["name"], row["oid"])
    yield from _digest_problems(connection, row["name"])
    yield from _dependents(connection, row["oid"], name, _changed(connection, row["name"]))


def _type_problems(connection: Connection, table: str) -> Iterator[tuple[str, str]]:
    columns = columns_of(connection, table)
    missing = [name for name in INDISPENSABLE[table] if name not in columns]
    if missing:
        yield f"public.{table} has no column {', '.join(missing)}", "rename the table, or add what is missing"
    if table in ("conversations", "files") and "id" in columns and columns["id"].type != UUID_TYPE:
        yield f"public.{table}.id is {columns['id'].type}, it has to be uuid", "convert it"
    for name, wanted in WANTED[table].items():
        found = columns.get(name)
        if found is None or found.type == wanted.type:
            continue
        is_text, is_time = wanted.type == "text" and found.type in TEXTS, wanted.type in TIMES and found.type in TIMES
        is_size = wanted.type == "bigint" and found.type == "integer" and name == "size_bytes"
        if not (is_text or is_time or is_size):
            yield f"public.{table}.{name} is {found.type}, it has to be {wanted.type}", "convert or rename it"


def _id_problems(connection: Connection, table: str, oid: int) -> Iterator[tuple[str, str]]:
    """Yield problems of the ids, which foreign keys require to be unique: proved by an index or a scan of all rows."""
    has_id = table in KEYED and "id" in columns_of(connection, table)
    if not has_id or connection.exec_driver_sql(HAS_KEY, (oid,)).fetchall():
        return
    connection.exec_driver_sql(UNLIMITED)
    if connection.exec_driver_sql(BAD_IDS[table]).fetchall():
        yield f"public.{table} has rows without an id or with the same one", "give each its own"


def _digest_problems(connection: Connection, table: str) -> Iterator[tuple[str, str]]:
    """Yield problems of an older table's digests, which become a key with a check constraint."""
    found = columns_of(connection, table).get("sha256") if table == "files" else None
    if found is None or found.type not in TEXTS:
        return
    connection.exec_driver_sql(UNLIMITED)
    if connection.exec_driver_sql(BAD_DIGESTS).fetchall():
        problem = "public.files has rows with the same sha256, or with one that is not 64 hexadecimal digits"
        yield problem, "set it to null in all but one of them, or rename the column"


def _update_problems(connection: Connection, row: RowMapping, name: str) -> Iterator[tuple[str, str]]:
    """Try an update of one row, and roll it back, on tables with user triggers that may refuse or suppress it."""
    is_ours = row["schema"] == "public" and row["is_owned"] and not row["rules"]
    if not is_ours or not connection.exec_driver_sql(GUARDED, (row["oid"],)).fetchall():
        return
    fixed = {each for each, _ in connection.exec_driver_sql(FIXED, (row["oid"], list(WANTED[row["name"]]))).fetchall()}
    columns = [
        each for each in WANTED[row["name"]] if each in columns_of(connection, row["name"]) and each not in fixed
    ]
    if not columns:
        return
    same = ", ".join(f"{each} = {each}" for each in columns)
    attempt = connection.begin_nested()
    try:
        # A locked row would make the trial fail for a reason other than triggers.
        rows = connection.exec_driver_sql(f"select ctid::text from {name} limit 1 for update skip locked").fetchall()  # noqa: S608
        for (place,) in rows:
            trial = f"update {name} set {same} where ctid = $1::text::tid"  # noqa: S608 - our own names
            if connection.exec_driver_sql(trial, (place,)).rowcount == 0:
                yield f"a trigger on {name} suppresses updates", LIFT
        connection.exec_driver_sql(IMMEDIATE)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in PASSING:
            raise
        said = str(getattr(error.orig, "__cause__", None) or error.orig).partition("\n")[0]
        yield f"a trigger on {name} refuses updates ({said})", LIFT
    finally:
        attempt.rollback()


def _changed(connection: Connection, table: str) -> list[str]:
    """The columns whose type the migrations change."""
    columns = columns_of(connection, table)
    wanted = {name: each.type for name, each in WANTED[table].items() if name in columns}
    return [name for name, type_ in wanted.items() if columns[name].type != type_ and type_ in ("text", *TIMES)]


def _changed_metrics(connection: Connection) -> list[str]:
    columns = columns_of(connection, "metrics_raw", "monitoring")
    return [
        name for name in METRIC_COLUMNS if name in columns and columns[name].type in (*TEXTS, TIMES[1])
        and columns[name].type != "text"
    ]  # fmt: skip


def _dependents(connection: Connection, oid: int, name: str, columns: list[str]) -> Iterator[tuple[str, str]]:
    for column, dependent in connection.exec_driver_sql(DEPENDENTS, (oid, columns)).fetchall():
        yield f"{dependent} uses {name}.{column}, whose type has to change", REMAKE
