#!/usr/bin/env python3
"""Publishes one kept event: clients that are away get it when they come back.

    apt-get install python3-redis        (or: pip install redis)
    python3 keep.py orders '{"order": 7, "state": "paid"}' --key order-7-paid

Prints the event's id. With the same key again, the same id is printed and nothing is published: so
a publisher that got no answer may simply try again, as this one does.

Receive it with node/follow.mjs, or with: curl -N 'http://127.0.0.1:8080/events/orders?history=10'
"""

import argparse
import os
import sys
import time

import redis

ATTEMPTS = 5

arguments = argparse.ArgumentParser(description="Publishes one kept event.")
arguments.add_argument("channel")
arguments.add_argument("data")
arguments.add_argument("--event", help="the event's name")
arguments.add_argument("--key", help="an idempotency key: what is published at most once")
arguments = arguments.parse_args()

# Without decode_responses the id would be bytes.
client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"), decode_responses=True)

options = []
if arguments.event:
    options += ["event", arguments.event]
if arguments.key:
    options += ["key", arguments.key]

for attempt in range(ATTEMPTS):
    try:
        event_id = client.fcall(
            "fanfare_publish", 1, f"sse:{arguments.channel}", arguments.data, *options
        )
        print(event_id)
        break
    except (redis.ConnectionError, redis.TimeoutError) as error:
        # It may have been published all the same. Without a key, trying again could do it twice.
        if not arguments.key or attempt == ATTEMPTS - 1:
            sys.exit(f"not known to be published: {error}")
        time.sleep(1)
    except redis.ResponseError as error:
        # A rule is broken, a right is missing, or no gateway has loaded the function yet.
        sys.exit(f"not published: {error}")
