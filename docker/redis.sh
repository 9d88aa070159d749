#!/bin/sh
# Start Redis by redis.conf with a password that stands in no argument and in no file but the secret.
# usage: redis.sh CONFIG PASSWORD_FILE [MORE ARGUMENTS OF redis-server]
set -eu

config=$1
password_file=$2
shift 2
[ -s "$password_file" ] || { echo "redis.sh: no password in $password_file" >&2; exit 2; }
hash=$(tr -d '\r\n' < "$password_file" | sha256sum | cut -d ' ' -f 1)

umask 077
acl=$(mktemp)
# what a broker needs and no administration: who has the password can neither flush it nor reconfigure the server
echo "user default on #$hash ~* &* +@all -@admin -@dangerous +info +config|get" > "$acl"
exec redis-server "$config" --aclfile "$acl" "$@"
