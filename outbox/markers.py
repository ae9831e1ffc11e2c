"""The markers: what Kafka knows of each lane, its last batch.

A marker is a record of the marker topic, whose partition is the lane. It is written in the Kafka
transaction of the batch that it names. The topic is compacted, so the last marker of a lane stays.
"""

import json
from typing import NamedTuple
from uuid import UUID


class Marker(NamedTuple):
    """A lane's last batch in Kafka. token: the batch's random name, which tells histories apart.

    Numbers do not: a copy of the database, or one that was restored, counts on from the same one.
    """

    batch_number: int
    token: UUID


def marker_key(identity: UUID) -> bytes:
    """Return the key of an outbox's markers: outboxes may share a marker topic."""
    return f"marker {identity}".encode()


def encode_marker(marker: Marker) -> bytes:
    """Return the value of a marker's record."""
    return json.dumps({"batch_number": marker.batch_number, "token": str(marker.token)}).encode()


def decode_marker(value: bytes | None) -> Marker | None:
    """Return what a record says; None for a tombstone, or what is no marker of ours."""
    try:
        found = json.loads(value or b"null")
        return Marker(int(found["batch_number"]), UUID(found["token"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
