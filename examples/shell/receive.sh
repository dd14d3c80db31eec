#!/bin/sh
# Prints what arrives on channels, as the gateway sends it, and comes back when cut off.
#
#   apt-get install curl
#   ./receive.sh orders prices             until Ctrl-C
#
# FANFARE_URL is the gateway's address: http://127.0.0.1:8080 when not set.
set -eu

if [ $# -eq 0 ]; then
    echo "usage: receive.sh CHANNEL..." >&2
    exit 2
fi

query=
for channel; do
    query="$query&channel=$channel"
done

# As a browser's EventSource does: come back after the stream has ended or the connection was lost,
# but not after a refusal, which curl tells by exit code 22.
while true; do
    refused=0
    curl --silent --show-error --fail-with-body --no-buffer \
        "${FANFARE_URL:-http://127.0.0.1:8080}/events?${query#&}" || [ $? -ne 22 ] || refused=1
    [ $refused -eq 0 ] || exit 1
    sleep 2
done
