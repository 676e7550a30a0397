#!/bin/sh
# What the official images' entry points do: give the data to the server's user, become it, listen to everybody.
set -eu
chown -R valkey /data
if test $# -eq 1; then
    set -- "$1" --protected-mode no
fi
exec setpriv --reuid=valkey --regid=valkey --init-groups "$@"
