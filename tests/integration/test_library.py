"""The outbox library in the hands of a service that is not this one."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread
from uuid import UUID, uuid4

import psycopg
import pytest

from orchestrator.embedded import Servers
from outbox import Message, Relay, connect, count_lanes, enqueue, transaction
from outbox.__main__ import main
from outbox.admin import read_parked
from testkit.empty_installation import bare_system
from testkit.eventually import eventually
from testkit.system import LANES, System, create_topics, own_headers


@pytest.fixture
def library(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """An installation of nothing but the library."""
    with bare_system(servers, tmp_path) as system:
        monkeypatch.setenv("DATABASE_URL", system.settings.database_url)
        assert main(["migrate", "--lanes", "4"]) == 0
        create_topics(system)
        yield system


def test_another_service_writes_messages_and_is_called_when_they_are_published(library: System) -> None:
    system = library
    conninfo, kafka = system.settings.database_url, system.settings.kafka
    topic, acknowledged = system.settings.output_topic, list[UUID]()
    orders = [uuid4() for _ in range(20)]
    with closing(connect(conninfo, "another service")) as conn, transaction(conn):
        messages = [Message(topic, order.bytes, b"paid", [("n", b"1")], order) for order in orders]
        enqueue(conn, messages, count_lanes(conn))
    relay = Relay(
        conninfo,
        kafka,
        on_published=lambda _conn, aggregate_ids: acknowledged.extend(aggregate_ids),
        marker_topic=system.settings.marker_topic,
    )
    stop = Event()
    thread = Thread(target=relay.run, args=[stop])
    thread.start()
    try:
        eventually(lambda: sorted(acknowledged) == sorted(orders))
    finally:
        stop.set()
        thread.join(5)
    assert not thread.is_alive()
    found = [(record.key(), record.value(), own_headers(record)) for record in system.read(topic)]
    assert sorted(found) == sorted((order.bytes, b"paid", [("n", b"1")]) for order in orders)
    with closing(system.connect()) as conn:
        assert list(read_parked(conn)) == []


def test_a_message_without_a_key_always_belongs_to_the_same_lane(system: System) -> None:
    messages = [Message("topic", None, None, [("offset", b"%d" % number)]) for number in range(50)]
    found = []
    with closing(system.connect()) as conn:
        for some in (messages, messages[::-1]):  # as after a restore: again, but not in the same order
            with transaction(conn):
                enqueue(conn, some, LANES)
            rows = system.query("DELETE FROM outbox RETURNING headers::text, lane")
            assert {lane for _, lane in rows} == set(range(LANES))
            found.append(dict(rows))
    assert found[0] == found[1]


def test_a_transaction_rolled_back_leaves_no_message(one_lane: System) -> None:
    def enqueue_and_fail() -> None:
        with closing(one_lane.connect()) as conn, transaction(conn):
            enqueue(conn, [Message(one_lane.settings.output_topic, b"k", b"v")], 1)
            conn.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        enqueue_and_fail()
    assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]
