#!/usr/bin/env python3
"""Sends one window of heartbeats for a service. Needs nothing but Python 3.8 and a Redis."""
import argparse, json, math, os, socket, sys, time, uuid
from datetime import datetime, timedelta, timezone

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--service", required=True, help="name of the service")
parser.add_argument("--seconds", type=float, default=60, help="length of the window")
parser.add_argument("--tick", type=float, default=10, help="seconds between two heartbeats")
parser.add_argument("--redis", default="127.0.0.1:6379", help="HOST:PORT, or the path of a socket")
parser.add_argument("--stream", default="reports", help="name of the stream")
options = parser.parse_args()

is_path = "/" in options.redis
redis = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
host, _, port = options.redis.partition(":")
redis.connect(options.redis if is_path else (host, int(port)))

def call(*words):
    words = [word.encode() for word in words]
    redis.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
    if (answer := redis.recv(4096)).startswith(b"-"):
        sys.exit(f"Redis refuses: {answer}")

if "REDIS_PASSWORD" in os.environ:
    call("AUTH", os.environ["REDIS_PASSWORD"])
start, tick = datetime.now(timezone.utc), timedelta(seconds=options.tick)
end = start + timedelta(seconds=options.seconds)
window = {"service": options.service, "window_uuid": str(uuid.uuid4()), "tick_seconds": options.tick,
          "window_from": start.isoformat(), "window_to": end.isoformat()}
call("XADD", "{%s}:windows" % options.stream, "*", "payload", json.dumps(window))
print(window["window_uuid"], flush=True)
for slot in range(math.ceil((end - start) / tick)):
    time.sleep(max(0, (start + slot * tick - datetime.now(timezone.utc)).total_seconds()))
    heartbeat = {**window, "slot": slot, "status": "ok", "timestamp": datetime.now(timezone.utc).isoformat()}
    call("XADD", options.stream, "*", "payload", json.dumps(heartbeat))
