#!/bin/sh
# Saves and restores EXAI's cache. A lost cache costs time and no data, so this is for a warm start, not for safety.
#
#   sh docker/backup-redis.sh                 saves to backups/cache-TIME.rdb and keeps the newest 7 files
#   sh docker/backup-redis.sh restore FILE    replaces the cache by the one in FILE
#
# Both work on the service valkey of compose.yaml. With REDIS_DIR they work on a server of this machine whose data is in
# that directory; REDIS_CLI is then the client with its options (default: valkey-cli), and the server has to be stopped
# before a restore. BACKUP_DIR is another place for the files, KEEP another number, LIMIT_S the longest wait (600).
set -eu
umask 077

directory=${BACKUP_DIR:-backups}
keep=${KEEP:-7}
limit_s=${LIMIT_S:-600}
secrets=${SECRETS_DIR:-secrets}

fail() {
    echo "backup-redis.sh: $1" >&2
    exit 1
}

# Sends one command as the user `admin`, whose password goes through a pipe and so into no list of processes.
cli() {
    if test -n "${REDIS_DIR:-}"; then
        # shellcheck disable=SC2086 # REDIS_CLI may hold options
        ${REDIS_CLI:-valkey-cli} "$@"
    else
        # shellcheck disable=SC2016 # expanded in the container
        docker compose exec -T valkey sh -c 'REDISCLI_AUTH=$(cat); export REDISCLI_AUTH; exec valkey-cli --user admin "$@"' \
            sh "$@" <"$secrets/valkey_admin_password"
    fi | tr -d '\r'
}

info() {
    cli INFO persistence | sed -n "s/^$1://p"
}

is_snapshot() {
    case $(head -c 6 "$1") in
    REDIS0 | VALKEY) true ;;
    *) false ;;
    esac
}

save() {
    mkdir -p "$directory"
    before=$(cli LASTSAVE)
    case $before in
    '' | *[!0-9]*) fail "the server does not answer: $before" ;;
    esac
    # LASTSAVE has seconds: a save in the second of the last one would not be seen.
    while test "$(cli TIME | head -n 1)" -le "$before"; do
        sleep 1
    done
    cli BGSAVE SCHEDULE >/dev/null
    waited_s=0
    while test "$(info rdb_bgsave_in_progress)" != 0 || test "$(cli LASTSAVE)" -le "$before"; do
        test "$(info rdb_last_bgsave_status)" != err || test "$(info rdb_bgsave_in_progress)" = 1 ||
            fail "the server could not save; its log has the cause"
        test "$waited_s" -lt "$limit_s" || fail "the server did not save within $limit_s s"
        sleep 1
        waited_s=$((waited_s + 1))
    done
    file=$directory/cache-$(date -u +%Y%m%dT%H%M%SZ).rdb
    if test -n "${REDIS_DIR:-}"; then
        cp "$REDIS_DIR/dump.rdb" "$file.unfinished"
    else
        docker compose exec -T valkey cat /data/dump.rdb >"$file.unfinished"
    fi
    is_snapshot "$file.unfinished" || fail "$file.unfinished is not a snapshot"
    mv "$file.unfinished" "$file"
    echo "$file"
    # In the order of their names, which is that of their times.
    set -- "$directory"/cache-*.rdb
    while test $# -gt "$keep"; do
        rm -- "$1"
        shift
    done
}

# The server reads its log and not the snapshot where it keeps both, so the snapshot becomes the base of a new log.
PLACE='rm -rf appendonlydir && mkdir appendonlydir && cat >dump.rdb && cp dump.rdb appendonlydir/appendonly.aof.1.base.rdb &&
    echo "file appendonly.aof.1.base.rdb seq 1 type b" >appendonlydir/appendonly.aof.manifest'

restore() {
    test -r "$1" || fail "$1 cannot be read"
    is_snapshot "$1" || fail "$1 is not a snapshot"
    if test -n "${REDIS_DIR:-}"; then
        test "$(cli PING 2>/dev/null)" != PONG || fail "stop the server first, and start it again afterwards"
        (cd "$REDIS_DIR" && sh -c "$PLACE") <"$1"
    else
        docker compose stop valkey
        docker compose run --rm --no-deps -T --entrypoint sh valkey -c "cd /data && $PLACE" <"$1"
        docker compose up --no-deps --detach --wait valkey
    fi
    echo "restored from $1"
}

case ${1:-save} in
save) save ;;
restore) restore "${2:?the file to restore from}" ;;
*) fail "the first argument is save or restore" ;;
esac
