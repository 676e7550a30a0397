#!/bin/sh
# Makes the secrets that compose.yaml gives to the containers, each in a file of the directory secrets/ (or SECRETS_DIR).
#   sh docker/secrets.sh                                   for the profile local, with a Postgres of its own
#   sh docker/secrets.sh 'postgresql://...supabase.com...' for the profile supabase
# Existing files are kept, except that a given address replaces the old one. Every file may be written by hand instead.
set -eu

directory=${SECRETS_DIR:-secrets}
mkdir -p "$directory"
# Nobody else enters the directory. The files can be read by everybody, because a container's user is another one.
chmod 700 "$directory"

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

put() {
    test -e "$directory/$1" || printf '%s\n' "$2" >"$directory/$1"
    chmod 444 "$directory/$1"
}

read_secret() {
    tr -d '\n' <"$directory/$1"
}

digest() {
    if command -v sha256sum >/dev/null; then printf %s "$1" | sha256sum; else printf %s "$1" | shasum -a 256; fi | cut -d ' ' -f 1
}

put EXAI_SERVER__TOKEN "$(random)"
put EXAI_SERVER__METRICS_TOKEN "$(random)"
put grafana_password "$(random)"

put postgres_password "$(random)"
postgres_password=$(read_secret postgres_password)
put EXAI_DATABASE__URL "postgresql://exai:$postgres_password@postgres:5432/exai"
if test $# -gt 0; then
    chmod 644 "$directory/EXAI_DATABASE__URL"
    printf '%s\n' "$1" >"$directory/EXAI_DATABASE__URL"
    chmod 444 "$directory/EXAI_DATABASE__URL"
fi
put pooler_url "postgresql://exai:$postgres_password@pgbouncer:6432/exai"
put pooler_users "\"exai\" \"$postgres_password\""

put valkey_password "$(random)"
put valkey_admin_password "$(random)"
valkey_password=$(read_secret valkey_password)
put EXAI_CACHE__URL "redis://exai:$valkey_password@valkey:6379/0"
if ! test -e "$directory/valkey_users"; then
    sed -e "s/EXAI_DIGEST/$(digest "$valkey_password")/" \
        -e "s/ADMIN_DIGEST/$(digest "$(read_secret valkey_admin_password)")/" \
        "$(dirname "$0")/users.acl" >"$directory/valkey_users"
fi
chmod 444 "$directory/valkey_users"
