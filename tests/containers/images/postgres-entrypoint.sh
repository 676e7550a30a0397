#!/bin/sh
# What the official image's entry point does, as far as the tests depend on it.
set -eu
as_postgres() {
    setpriv --reuid=postgres --regid=postgres --init-groups "$@"
}
mkdir -p "$PGDATA"
chown -R postgres "$PGDATA"
chmod 700 "$PGDATA"
POSTGRES_USER=${POSTGRES_USER:-postgres}
POSTGRES_DB=${POSTGRES_DB:-$POSTGRES_USER}
export POSTGRES_USER POSTGRES_DB
if test ! -s "$PGDATA/PG_VERSION"; then
    password=${POSTGRES_PASSWORD:-$(cat "$POSTGRES_PASSWORD_FILE")}
    printf '%s\n' "$password" >/tmp/password
    chmod 644 /tmp/password
    # shellcheck disable=SC2086 # the variable holds options
    as_postgres initdb --username="$POSTGRES_USER" --pwfile=/tmp/password -D "$PGDATA" ${POSTGRES_INITDB_ARGS:-}
    rm /tmp/password
    printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    as_postgres pg_ctl -D "$PGDATA" -w start -o "-c listen_addresses='' -c unix_socket_directories=/tmp"
    PGHOST=/tmp
    export PGHOST
    test "$POSTGRES_DB" = postgres || as_postgres createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*.sh; do
        test ! -e "$script" || as_postgres sh "$script"
    done
    as_postgres pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
