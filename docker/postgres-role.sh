#!/bin/sh
# Run once by the image when the data directory is made: EXAI gets a role that owns its database and nothing else. The
# superuser loses its password, so that nobody becomes it over the network.
set -eu

password=${POSTGRES_PASSWORD:-$(cat "$POSTGRES_PASSWORD_FILE")}
psql --set=ON_ERROR_STOP=1 --set=password="$password" --username="$POSTGRES_USER" --dbname=postgres <<'SQL'
create role exai login password :'password';
create database exai owner exai;
alter role current_user password null;
SQL
