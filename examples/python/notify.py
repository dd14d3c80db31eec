#!/usr/bin/env python3
"""Notifies one client: each client listens on a channel of its own, named after its id.

    apt-get install python3-redis        (or: pip install redis)
    python3 notify.py client-42 "Your order is on its way."

The client receives it with: curl -N http://127.0.0.1:8080/events/client-42
"""

import json
import os
import sys

import redis

if len(sys.argv) != 3:
    sys.exit("usage: notify.py CLIENT_ID TEXT")
client_id, text = sys.argv[1:]

client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))

# An object whose only member is "sse" carries the event's fields beside its data.
event = {"sse": {"event": "notification", "data": {"text": text}}}
gateways = client.publish(f"sse:{client_id}", json.dumps(event))

# Redis counts subscribers, and a gateway subscribes only to what its clients want.
if gateways == 0:
    print(f"{client_id} is not connected: nobody received it")
