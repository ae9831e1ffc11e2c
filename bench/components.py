"""Measurements of one component in this process: the lanes of a relay, or a consumer session."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from statistics import median

from bench.load import fill_input, fill_outbox
from bench.publishers import PlainPublisher
from bench.testbed import Testbed, read_wal
from outbox import Observer
from outbox.admin import Publisher
from testkit.system import LANES, OwnedLane, System

SMALL, USUAL = 1, 500  # batch sizes of the comparison


def relay_price(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure the lanes of a relay with and without Kafka transactions, in turn."""
    with (
        testbed.system() as system,
        testbed.system() as other,
        all_lanes(system, Publisher) as exact,
        all_lanes(other, PlainPublisher) as plain,
    ):
        rates = [(drain(system, exact, rows // 4), drain(other, plain, rows // 4)) for _ in range(4)]
    return {
        "exactly_once_rate": median(rate for rate, _ in rates),
        "idempotent_rate": median(rate for _, rate in rates),
        "price": median(exact / plain for exact, plain in rates),
    }


@contextmanager
def all_lanes(system: System, publisher: type[Publisher]) -> Iterator[OwnedLane]:
    """Give the lanes of an installation, recovered, as one relay works them."""
    with system.lane(*range(LANES), batch_size=USUAL, publisher=publisher) as lanes:
        lanes.recover()
        yield lanes


def relay_batches(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure a lane with small and with usual batches."""
    with testbed.system(lanes=1) as system:
        with system.lane(batch_size=USUAL) as lane:
            lane.recover()
            usual = drain(system, lane, rows)
        with system.lane(batch_size=SMALL) as lane:
            lane.recover()
            small = drain(system, lane, max(rows // 200, 100))
    return {"usual_rate": usual, "small_rate": small, "gain": usual / small}


def consumer_batches(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure a consumer's session with small and with usual batches."""
    usual = consume(testbed, rows, USUAL)
    small = consume(testbed, max(rows // 200, 100), SMALL)
    return {"usual_rate": usual, "small_rate": small, "gain": usual / small}


def consume(testbed: Testbed, commands: int, batch_size: int) -> float:
    """Return commands a second of a session, all of which wait at its start."""
    with testbed.system(BATCH_SIZE=str(batch_size)) as system:
        fill_input(system, commands)
        with system.consumer() as session:
            taken = 0
            while not taken:
                taken = session.run_once()
            began, first = time.perf_counter(), taken
            while taken < commands:
                taken += session.run_once()
            return (commands - first) / (time.perf_counter() - began)


def drain(system: System, lanes: OwnedLane, rows: int) -> float:
    """Return rows a second of a relay session, all of which wait at its start."""
    fill_outbox(system, rows)
    began = time.perf_counter()
    published = lanes.drain()
    took = time.perf_counter() - began
    if published != rows:
        raise RuntimeError(f"{published} of {rows} rows were published")
    return rows / took


# ---- what may slow a claim ------------------------------------------------------------------------


def backlog(testbed: Testbed, waiting: int, few: int = 10_000) -> dict[str, float]:
    """Measure the same number of batches before a long backlog and before a short one, in turn."""
    claims = ClaimTimes()
    with testbed.system(lanes=1) as long, testbed.system(lanes=1) as short:
        fill_outbox(long, waiting)
        with long.lane(observer=claims) as far, short.lane(observer=claims) as near:
            for lane in (far, near):
                lane.recover()
            rounds = []
            for _ in range(5):
                far_rate, far_claim = claims.around(lambda: some_batches(far, few))
                near_rate, near_claim = claims.around(lambda: drain(short, near, few))
                rounds.append((far_rate / near_rate, far_claim / near_claim, far_rate, near_rate))
    rate, claim, far_rates, near_rates = (median(column) for column in zip(*rounds, strict=True))
    return {"rate": rate, "claim_p50": claim, "long_rate": far_rates, "short_rate": near_rates}


def some_batches(lane: OwnedLane, rows: int) -> float:
    """Return rows a second of a lane that has more than these."""
    began = time.perf_counter()
    done = 0
    while done < rows:
        done += lane.run_once()
    return done / (time.perf_counter() - began)


class ClaimTimes(Observer):
    """How long claims take."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def claimed(self, rows: int, seconds: float) -> None:
        """Note one claim."""
        self._times.append(seconds)

    def around(self, work: Callable[[], float]) -> tuple[float, float]:
        """Return what the work returns, and the median seconds of its claims."""
        self._times.clear()
        result = work()
        return result, median(self._times)


DEAD = """
    INSERT INTO outbox (lane, topic, key, value)
    SELECT 0, 'nowhere', 'key', convert_to(repeat('x', 150), 'UTF8') FROM generate_series(1, %s)
"""


def pinned_horizon(testbed: Testbed, rows: int, dead: int = 400_000) -> dict[str, float]:
    """Measure a lane whose dead rows cannot be removed, and one without any, in turn."""
    with (
        testbed.system(lanes=1) as hindered,
        testbed.system(lanes=1) as free,
        closing(hindered.connect("a long report")) as report,
        hindered.lane() as slow,
        free.lane() as fast,
    ):
        report.execute("SET idle_in_transaction_session_timeout = 0")
        report.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        report.execute("SELECT count(*) FROM workers")
        hindered.query(DEAD, dead)
        hindered.query("DELETE FROM outbox WHERE topic = 'nowhere'")
        for lane in (slow, fast):
            lane.recover()
        rates = [(drain(hindered, slow, rows // 5), drain(free, fast, rows // 5)) for _ in range(5)]
    return {
        "hindered_rate": median(rate for rate, _ in rates),
        "free_rate": median(rate for _, rate in rates),
        "rate": median(slow / fast for slow, fast in rates),
    }


BARE_INSERT = """
    WITH fresh AS MATERIALIZED (
        SELECT number, uuidv7() AS worker_id, gen_random_uuid() AS scenario,
               'rtsp://bench:secret@camera.example/' || number AS url
          FROM generate_series(1, 1000) AS number
    ), accepted AS (
        INSERT INTO workers (worker_id, scenario_uuid, camera_url)
        SELECT worker_id, scenario, url FROM fresh
    )
    INSERT INTO outbox (lane, topic, key, value, aggregate_id)
    SELECT 0, %s, convert_to(scenario::text, 'UTF8'),
           convert_to(concat('{"worker_id":"', worker_id, '","scenario_uuid":"', scenario,
                             '","camera_url":"', url, '"}'), 'UTF8'),
           worker_id
      FROM fresh
"""


def wal(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure the WAL of a message end to end, and of only the insert into the two tables.

    Without autovacuum on these tables, whose WAL depends on time.
    """
    with testbed.system(lanes=1) as system, testbed.system(lanes=1, BATCH_SIZE="1000") as full:
        for one, table in product((system, full), ("workers", "outbox")):
            one.query(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
        testbed.query("CHECKPOINT")
        before = read_wal(system)
        for _ in range(rows // 1000):
            system.query(BARE_INSERT, system.settings.output_topic)
        bare = (read_wal(system) - before) / rows
        fill_input(full, rows)
        with full.consumer() as session, full.lane() as lane:
            lane.recover()
            testbed.query("CHECKPOINT")
            before = read_wal(full)
            taken = 0
            while taken < rows:
                taken += session.run_once()
            lane.drain()
            ours = (read_wal(full) - before) / rows
    return {"bytes": ours, "bare_bytes": bare, "ratio": ours / bare}
