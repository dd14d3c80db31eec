#!/bin/sh
# Broadcasts a text to all clients: to everybody who listens on one agreed channel, beside whatever
# else they listen on.
#
#   apt-get install redis-tools
#   ./broadcast.sh broadcast 'Maintenance starts at noon.'
#
# A client receives its own channel and the broadcasts on one connection:
#   curl -N 'http://127.0.0.1:8080/events?channel=client-42&channel=broadcast'
set -eu

if [ $# -ne 2 ]; then
    echo "usage: broadcast.sh CHANNEL TEXT" >&2
    exit 2
fi

gateways=$(redis-cli -u "${REDIS_URL:-redis://127.0.0.1:6379}" -e PUBLISH "sse:$1" "$2")
echo "passed on to $gateways gateway(s)"
