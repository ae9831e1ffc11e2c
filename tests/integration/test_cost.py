"""What a batch costs, counted on the wire: statements and commits in Postgres, requests to Kafka."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.config.timings import ConsumerTimings
from outbox import watermark
from testkit.proxied import WiredKafka, led_through, postgres_proxied
from testkit.proxy import ANY, Connection, Rule
from testkit.system import System, take
from testkit.wire_protocol import Frame

WARM = 7  # batches: psycopg prepares BEGIN and COMMIT at their sixth time
BATCHES = 5
ROWS = 10  # a batch, of one key: so of one partition


class Counting:
    """A rule that lets everything through and counts it by its first words."""

    def __init__(self, words: int) -> None:
        self.counts: Counter[str] = Counter()
        self.rule = Rule(ANY, self._count, hit=0)
        self._words = words

    def _count(self, connection: Connection, frame: Frame) -> None:
        self.counts[" ".join(frame.name.split()[: self._words])] += 1
        connection.forward(frame)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at who is writing: that is for every 0.2 s, and not for every batch."""
    monkeypatch.setattr(watermark, "WRITER_POLL_S", 3600)


@contextmanager
def counted(system: System, kafka: WiredKafka) -> Iterator[tuple[System, Counter[str], Counter[str]]]:
    """Give the installation behind both proxies, with what was said to Postgres and to Kafka."""
    statements, requests = Counting(words=2), Counting(words=1)
    with (
        kafka.proxied(requests.rule) as bootstrap_servers,
        postgres_proxied(system, [statements.rule]) as url,
    ):
        led = led_through(system, bootstrap_servers, DATABASE_URL=url, BATCH_SIZE=str(ROWS))
        yield led, statements.counts, requests.counts


@pytest.mark.usefixtures("quiet")
def test_a_batch_of_the_relay(wired_lane: System, wired: WiredKafka) -> None:
    (scenario,) = wired_lane.submit(1)
    with (
        counted(wired_lane, wired) as (led, statements, requests),
        led.lane(batch_size=ROWS) as lane,
    ):
        wired_lane.accept((WARM + BATCHES) * ROWS, scenario)
        lane.recover()
        for _ in range(WARM):
            lane.run_once()
        for counts in (statements, requests):
            counts.clear()
        for _ in range(BATCHES):
            assert lane.run_once() == ROWS
        assert statements == {
            "BEGIN ISOLATION": BATCHES,
            "SELECT outbox_lane.lane,": BATCHES,  # the lane row and its lock
            "DELETE FROM": BATCHES,
            "WITH free": BATCHES,
            "SELECT claimed.lane,": BATCHES,  # the claim
            "UPDATE outbox_lane": BATCHES,
            "COMMIT": BATCHES,
        }
        assert requests["Produce"] == 2 * BATCHES  # the records' partition, and the marker's
        assert BATCHES <= requests["AddPartitionsToTxn"] <= 2 * BATCHES  # one for both, or one each
        assert requests["EndTxn"] == BATCHES
        assert requests["AddOffsetsToTxn"] == requests["TxnOffsetCommit"] == 0
        assert requests["Fetch"] == 0  # evidence is read after a doubt, and not for every batch
        lane.drain()
    wired_lane.check_exactly_once((WARM + BATCHES) * ROWS)


def test_a_batch_of_the_consumer(wired_lane: System, wired: WiredKafka) -> None:
    (scenario,) = wired_lane.submit(1)
    # For lag tools, and for operators: not for every batch.
    timings = ConsumerTimings(commit_offsets_s=3600, position_check_s=3600)
    with (
        counted(wired_lane, wired) as (led, statements, requests),
        led.consumer(timings) as session,
    ):
        take(session, 1)
        for number in range(WARM + BATCHES):
            if number == WARM:
                for counts in (statements, requests):
                    counts.clear()
            wired_lane.submit(1, scenario)
            take(session, 1)
        del statements["SELECT"]  # an idle session's ping
        assert statements == {
            "BEGIN ISOLATION": BATCHES,
            "UPDATE consumed_offsets": BATCHES,
            "WITH inserted": BATCHES,  # workers
            "INSERT INTO": BATCHES,  # the outbox
            "COMMIT": BATCHES,
        }
        assert requests["OffsetCommit"] == 0
        assert BATCHES <= requests["Metadata"] <= BATCHES + 1  # one may be the client's own, every 10 s
    assert wired_lane.statuses() == {"pending": 1 + WARM + BATCHES}
