#!/usr/bin/env python3
"""Sends one window of heartbeats for a service. Needs nothing but Python 3.8 and a Redis."""
import argparse, json, math, os, socket, subprocess, sys, time, uuid
from datetime import datetime, timedelta, timezone

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--service", required=True, help="name of the service")
parser.add_argument("--seconds", type=float, default=60, help="length of the window")
parser.add_argument("--tick", type=float, default=10, help="seconds between two heartbeats")
parser.add_argument("--check", help="shell command that exits 0 if the service is well")
parser.add_argument("--redis", default="127.0.0.1:6379", help="HOST:PORT or a socket")
parser.add_argument("--password", default=os.environ.get("REDIS_PASSWORD"), help="of the Redis")
parser.add_argument("--stream", default="reports", help="name of the stream")
options = parser.parse_args()
span, tick = timedelta(seconds=options.seconds), timedelta(seconds=options.tick)


def now():
    return datetime.now(timezone.utc)


def status():
    code = subprocess.call(options.check, shell=True) if options.check else 0
    return "ok" if code == 0 else f"error:the check ended with exit code {code}"


def connect():
    if "/" not in options.redis:
        return socket.create_connection(options.redis.rsplit(":", 1), timeout=5)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(options.redis)
    return connection


def xadd(stream, message):
    commands = [["AUTH", options.password]] if options.password else []
    commands.append(["XADD", stream, "*", "payload", json.dumps(message)])
    with connect() as connection:
        for command in commands:
            words = [word.encode() for word in command]
            wire = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
            connection.sendall(b"*%d\r\n%s" % (len(words), wire))
            reply = connection.makefile("rb").readline()
            if reply[:1] not in (b"+", b"$"):
                raise OSError(f"Redis answered {reply!r}")


def send(outbox):
    """What cannot be sent now stays in the outbox. To send twice is harmless."""
    try:
        while outbox:
            xadd(*outbox[0])
            outbox.pop(0)
    except OSError as error:
        print(f"will be sent with the next heartbeat: {error}", file=sys.stderr)


start = now()
window = {"service": options.service, "window_uuid": str(uuid.uuid4()), "tick_seconds": options.tick,
          "window_from": start.isoformat(), "window_to": (start + span).isoformat()}
outbox = [("{%s}:windows" % options.stream, window)]
send(outbox)
print(window["window_uuid"], flush=True)
for slot in range(math.ceil(span / tick)):
    due = start + slot * tick
    time.sleep(max(0, (due - now()).total_seconds()))
    if now() < due + tick:  # else the slot has passed, and nothing is back-dated
        heartbeat = {**window, "slot": slot, "status": status(), "timestamp": now().isoformat()}
        outbox.append((options.stream, heartbeat))
    send(outbox)
sys.exit(f"{len(outbox)} messages were not sent" if outbox else 0)
