#!/usr/bin/env python3
"""Checks the log's leaf format without any of the product's code (see docs/log-format.md).

    log_vectors.py                       checks docs/log-vectors.json
    log_vectors.py vectors FILE          checks these vectors
    log_vectors.py export FILE|-         checks an NDJSON export: every leaf, every chain, every position
    log_vectors.py sparse FILE|-         the same of an engine whose positions only rise (EventStoreDB)

Needs nothing but Python 3.9. Exits 0 when all is well; says every fault otherwise.
"""

import base64
import hashlib
import json
import pathlib
import re
import sys
import uuid
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
TIME = re.compile(r"^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.(\d{6})Z$")


def number(value, size):
    return value.to_bytes(size, "big")


def text(value):
    raw = value.encode("utf-8")
    return number(len(raw), 2) + raw


def optional(raw):
    return b"\x00" if raw is None else b"\x01" + raw


def micros(value):
    match = TIME.match(value)
    if not match:
        raise ValueError(f"{value!r} is not a UTC time with six decimals")
    at = datetime(*map(int, match.groups()), tzinfo=timezone.utc)
    return (at - EPOCH) // timedelta(microseconds=1)


def identifier(value):
    return None if value is None else uuid.UUID(value).bytes


def binary(value):
    return None if value is None else bytes.fromhex(value)


def leaf(event):
    """The bytes that are hashed."""
    tags = [tag.encode("utf-8") for tag in event["tags"]]
    if tags != sorted(set(tags)):
        raise ValueError("the tags are not sorted by bytes and unique")
    out = b"\x01"
    out += text(event["stream"])
    out += number(event["revision"], 8)
    out += identifier(event["id"])
    out += text(event["type"])
    out += number(event["schema_version"], 2)
    out += micros(event["occurred_at"]).to_bytes(8, "big", signed=True)
    out += text(event["actor"])
    out += identifier(event["correlation_id"])
    out += optional(identifier(event["causation_id"]))
    out += number(len(tags), 2)
    for tag in event["tags"]:
        out += text(tag)
    out += binary(event["commitment"])
    out += optional(binary(event["prev_hash"]))
    return out


def faults_of(event):
    """What does not hold of one event on its own."""
    try:
        if hashlib.sha256(leaf(event)).hexdigest() != event["hash"]:
            yield "its leaf hash is not the hash of what it says"
        if (event["data"] is None) != (event["salt"] is None):
            yield "it has data without salt, or salt without data"
        elif event["data"] is not None:
            data = base64.b64decode(event["data"], validate=True)
            salt = binary(event["salt"])
            if len(salt) != 32:
                yield "its salt has not 32 bytes"
            if hashlib.sha256(salt + data).hexdigest() != event["commitment"]:
                yield "its data is not what its commitment is to"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield f"it cannot be read: {error!r}"


def check_vectors(path):
    vectors = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["vectors"]
    faults = 0
    seen = {}
    for vector in vectors:
        found = list(faults_of(vector["event"]))
        encoded = leaf(vector["event"]).hex()
        if encoded != vector["leaf"]:
            found.append(f"the leaf is {encoded}")
        if encoded in seen:
            found.append(f"its leaf is that of {seen[encoded]!r} too")
        seen[encoded] = vector["name"]
        for fault in found:
            print(f"{vector['name']}: {fault}", file=sys.stderr)
        faults += len(found)
    print(f"{len(vectors)} vectors, {faults} faults")
    return faults


def check_export(lines, sparse):
    heads, gone, redacted = {}, {}, set()
    faults = events = 0
    position, recorded_at, head = None, None, "-"
    for line_number, line in enumerate(lines, 1):
        found = []
        try:
            event = json.loads(line)
            found.extend(faults_of(event))
            if position is not None and sparse:
                if event["position"] <= position:
                    found.append(f"position {event['position']} does not follow {position}")
            elif position is not None and event["position"] != position + 1:
                found.append(f"position {position + 1} is missing")
            position = event["position"]
            recorded = micros(event["recorded_at"])
            if recorded_at is not None and recorded < recorded_at:
                found.append("it was recorded before the event before it")
            recorded_at = recorded
            before = heads.get(event["stream"])
            # An export may start in the middle: then the first event of a stream is taken as it is.
            if before is None and not sparse and position == events + 1:
                before = (-1, None)
            if before is not None and (event["revision"], event["prev_hash"]) != (before[0] + 1, before[1]):
                found.append(f"it does not follow revision {before[0]} of {event['stream']}")
            heads[event["stream"]] = (event["revision"], event["hash"])
            if event["data"] is None:
                gone[event["id"]] = line_number
            elif event["type"] == "log.redacted" and event["stream"] == "log":
                said = base64.b64decode(event["data"]).decode("utf-8", "replace")
                redacted.update(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", said.lower()))
            head = event["hash"]
        except (KeyError, TypeError, ValueError) as error:
            found.append(f"it cannot be read: {error!r}")
        events += 1
        for fault in found:
            print(f"line {line_number}: {fault}", file=sys.stderr)
        faults += len(found)
    for event_id, line_number in gone.items():
        if event_id not in redacted:
            print(f"line {line_number}: its data is gone and no log.redacted names it", file=sys.stderr)
            faults += 1
    print(f"{events} events in {len(heads)} streams, {len(gone)} redacted, head {head}, {faults} faults")
    return faults


def main(arguments):
    if not arguments:
        return check_vectors(pathlib.Path(__file__).resolve().parent.parent / "docs" / "log-vectors.json")
    if len(arguments) == 2 and arguments[0] == "vectors":
        return check_vectors(arguments[1])
    if len(arguments) == 2 and arguments[0] in ("export", "sparse"):
        sparse = arguments[0] == "sparse"
        if arguments[1] == "-":
            return check_export(sys.stdin, sparse)
        with open(arguments[1], encoding="utf-8") as lines:
            return check_export(lines, sparse)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 100))
