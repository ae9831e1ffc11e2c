"""What a relay that waits writes into its log."""

import logging

import pytest
from confluent_kafka import KafkaError, KafkaException

from outbox import Relay


def unreachable(after_ms: int) -> KafkaException:
    """Return the error of a broker that refuses connections; the client says how long that took."""
    text = f"h:9092/bootstrap: Connect failed: Connection refused (after {after_ms}ms in state CONNECT)"
    return KafkaException(KafkaError(KafkaError._TRANSPORT, text))


def test_a_reason_is_logged_once_until_the_relay_works(caplog: pytest.LogCaptureFixture) -> None:
    relay = Relay("postgresql://h/d", {"bootstrap.servers": "h:9092"}, lambda *_: None)
    caplog.set_level(logging.INFO, "outbox")
    for number in range(3):
        relay._set_error(unreachable(number))
        relay._set_error(OSError("no route"))
    assert relay.last_error == "OSError: no route"
    relay._set_error(None)
    relay._set_error(None)
    relay._set_error(OSError("no route"))
    said = [(record.getMessage(), vars(record).get("next")) for record in caplog.records]
    waiting = ("relay waiting", "trying again")
    assert said == [waiting, waiting, ("relay connected", None), waiting]
