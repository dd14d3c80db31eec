#!/usr/bin/env python3
"""Publishes the time every second.

    apt-get install python3-redis        (or: pip install redis)
    python3 clock.py clock               until Ctrl-C
    python3 clock.py clock --count 3

Watch it with: curl -N http://127.0.0.1:8080/events/clock
"""

import argparse
import os
import time

import redis

arguments = argparse.ArgumentParser(description="Publishes the time every second.")
arguments.add_argument("channel")
arguments.add_argument("--count", type=int, help="stop after so many events")
arguments = arguments.parse_args()

client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))

published = 0
second = int(time.time())
try:
    while True:
        client.publish(f"sse:{arguments.channel}", time.strftime("%H:%M:%S", time.localtime(second)))
        published += 1
        if published == arguments.count:
            break
        # Each second once, and none made up for after the machine has slept.
        second = max(second + 1, int(time.time()))
        time.sleep(max(0, second - time.time()))
except KeyboardInterrupt:
    pass
