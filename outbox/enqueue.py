"""The writer's side: messages into the outbox, in the transaction that decides them."""

from collections.abc import Sequence

from outbox import arrays
from outbox.message import Message, encode_headers, lane_of
from outbox.postgres import Connection, scalar

ENQUEUE = """
    INSERT INTO outbox (lane, topic, key, value, headers, aggregate_id)
    SELECT lane, topic, key, value, headers::json, aggregate_id
      FROM unnest(%b::smallint[], %b::text[], %b::bytea[], %b::bytea[], %b::text[], %b::uuid[])
           AS message (lane, topic, key, value, headers, aggregate_id)
"""


def enqueue(conn: Connection, messages: Sequence[Message], lanes: int) -> None:
    """Insert messages into the outbox, in their order, inside the caller's transaction.

    lanes: `count_lanes(conn)`, read once at start. One statement for all messages.
    """
    if not messages:
        return
    headers = [encode_headers(m.headers) for m in messages]
    conn.execute(
        ENQUEUE,
        (
            arrays.smallints(
                lane_of(_content(m.value, text) if m.key is None else m.key, lanes)
                for m, text in zip(messages, headers, strict=True)
            ),
            arrays.texts(m.topic for m in messages),
            arrays.byteas(m.key for m in messages),
            arrays.byteas(m.value for m in messages),
            arrays.texts(headers),
            arrays.uuids(m.aggregate_id for m in messages),
        ),
        prepare=True,
    )


def _content(value: bytes | None, headers: str | None) -> bytes:
    """Return what decides the lane of a message without a key.

    Only the content does, nothing that this process remembers: a message that is written again after
    a restore must come to the lane that knows whether it was published.
    """
    return (headers or "").encode() + (value or b"")


COUNT_LANES = "SELECT count(*) FROM outbox_lane"


def count_lanes(conn: Connection) -> int:
    """Return the number of lanes; it is fixed when the schema is made."""
    return scalar(conn, int, COUNT_LANES)
