"""The metrics of real processes after real work."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from urllib.request import urlopen

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.config.settings import read_settings
from orchestrator.config.timings import ProcessTimings
from orchestrator.contract.workers import READ_ID_SEQUENCE
from orchestrator.observability.backlog import backlog_gauges
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import RelayMetrics, new_registry
from testkit.eventually import eventually
from testkit.proxied import postgres_proxied
from testkit.proxy import Rule, swallow
from testkit.system import Running, System, deferred_workers, end_sessions
from tests.acceptance.test_roles import roles_made

COMMANDS, BAD = 200, 3

CONSUMERS = {
    "orchestrator_build_info",
    "orchestrator_consumer_lag_records",
    "orchestrator_consumer_position",
    "orchestrator_dead_letters",
    "orchestrator_records",
    "orchestrator_partitions_refused",
    "orchestrator_transaction_duration_seconds",
    "orchestrator_unconfirmed_commits",
}
RELAYS = {
    "orchestrator_build_info",
    "orchestrator_unconfirmed_commits",
    "orchestrator_worker_ids_used_ratio",
    "outbox_batch_rows",
    "outbox_deferred_rows",
    "outbox_delivery_latency_seconds",
    "outbox_lanes_owned",
    "outbox_lanes_refused",
    "outbox_last_success_timestamp_seconds",
    "outbox_oldest_deferred_age_seconds",
    "outbox_oldest_pending_age_seconds",
    "outbox_parked",
    "outbox_parked_rows",
    "outbox_pending_rows",
    "outbox_transaction_duration_seconds",
    "outbox_published",
    "outbox_recoveries",
    "outbox_relay_without_kafka",
}


def scrape(process: Running) -> dict[str, Metric]:
    with urlopen(f"http://127.0.0.1:{process.port()}/metrics", timeout=5) as answer:
        return {found.name: found for found in text_string_to_metric_families(answer.read().decode())}


def samples(process: Running, name: str) -> dict[str, float]:
    """Return the series `name` of a process: value by what its labels say."""
    return {
        ",".join(sample.labels.values()): sample.value
        for family in scrape(process).values()
        for sample in family.samples
        if sample.name == name
    }


def total(process: Running, name: str) -> float:
    return sum(samples(process, name).values())


@pytest.fixture
def worked(system: System) -> tuple[Running, Running]:
    """A consumer and a relay that did some work."""
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(COMMANDS)
    system.produce(b"not JSON", b"{}", None)
    system.check_exactly_once(COMMANDS)
    eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
    eventually(lambda: total(consumer, "orchestrator_records_total") == COMMANDS + BAD)
    return consumer, relay


def test_work_is_counted_by_the_process_that_did_it(worked: tuple[Running, Running]) -> None:
    consumer, relay = worked
    assert scrape(consumer).keys() == CONSUMERS
    assert scrape(relay).keys() == RELAYS

    assert samples(consumer, "orchestrator_records_total") == {
        "accepted": COMMANDS,
        "duplicate": 0,
        "dead_letter": BAD,
    }
    reasons = samples(consumer, "orchestrator_dead_letters_total")
    found = {reason: records for reason, records in reasons.items() if records}
    assert found == {"not_json": 1, "wrong_fields": 1, "empty": 1}
    transactions = total(consumer, "orchestrator_transaction_duration_seconds_count")
    assert 1 <= transactions <= COMMANDS + BAD
    assert 0 < total(consumer, "orchestrator_transaction_duration_seconds_sum") < 10 * transactions
    assert samples(consumer, "orchestrator_partitions_refused") == {"": 0}
    lag = eventually(lambda: samples(consumer, "orchestrator_consumer_lag_records"))
    assert lag.keys() == {"0", "1"}
    eventually(lambda: total(consumer, "orchestrator_consumer_position") == COMMANDS + BAD)

    rows = COMMANDS + BAD
    assert samples(relay, "outbox_published_total") == {"": rows}
    assert total(relay, "outbox_batch_rows_sum") == rows
    batches = total(relay, "outbox_batch_rows_count")
    assert 1 <= batches <= rows
    assert total(relay, "outbox_delivery_latency_seconds_count") == batches
    assert 0 < total(relay, "outbox_delivery_latency_seconds_sum") < 30 * batches
    transactions_by_server = samples(relay, "outbox_transaction_duration_seconds_count")
    assert transactions_by_server.keys() == {"postgres", "kafka"}
    assert min(transactions_by_server.values()) >= batches
    recoveries = samples(relay, "outbox_recoveries_total")
    assert {outcome: times for outcome, times in recoveries.items() if times} == {"new_lane": 4}
    assert samples(relay, "outbox_parked_total") == {"": 0}
    assert samples(relay, "outbox_lanes_owned") == {"": 4}
    assert samples(relay, "outbox_lanes_refused") == {"": 0}
    eventually(lambda: total(relay, "orchestrator_worker_ids_used_ratio") > 0)
    used = total(relay, "orchestrator_worker_ids_used_ratio")
    assert COMMANDS / 2**31 <= used < 2 * COMMANDS / 2**31
    assert abs(time.time() - total(relay, "outbox_last_success_timestamp_seconds")) < 5

    for process, name in ((consumer, "consumer"), (relay, "relay")):
        ((labels, one),) = samples(process, "orchestrator_build_info").items()
        assert one == 1
        assert name in labels.split(",")


def test_gauges_of_whole_tables_are_not_doubled_by_two_relays(system: System) -> None:
    often = json.dumps({"gauge_period_s": 0.2, "gauge_max_pause_s": 1.0})
    relays = [system.start("relay", OUTBOX_TIMINGS=often) for _ in range(2)]
    for relay in relays:  # both own lanes and report
        eventually(partial(has_lanes, relay, 2))
    with closing(system.connect()) as conn, conn.transaction():
        conn.execute("SELECT FROM outbox_lane FOR UPDATE")  # holds all rows back
        system.accept(COMMANDS)
        waiting = [eventually(partial(pending, relay)) for relay in relays]
        assert [len(lanes) for lanes in waiting] == [2, 2]
        assert waiting[0].keys() | waiting[1].keys() == {"0", "1", "2", "3"}
        assert sum(sum(lanes.values()) for lanes in waiting) == COMMANDS
        for relay in relays:
            ages = samples(relay, "outbox_oldest_pending_age_seconds")
            assert 0 < max(ages.values()) < 60
    system.check_exactly_once(COMMANDS)


def test_deferred_workers_are_in_the_metrics_and_noted_in_readyz(one_lane: System) -> None:
    with deferred_workers(one_lane, 3):
        relay = one_lane.start("relay")
        eventually(lambda: samples(relay, "outbox_deferred_rows") == {"": 3})
        assert 0 < total(relay, "outbox_oldest_deferred_age_seconds") < 60
        eventually(lambda: '{"ready": true,' in relay.get("/readyz"))
        note = json.loads(relay.get("/readyz"))["notes"]["deferred"]
        assert note.startswith("3 workers are published and not yet deployed, the oldest for ")
    eventually(lambda: samples(relay, "outbox_deferred_rows") == {"": 0})
    assert samples(relay, "outbox_oldest_deferred_age_seconds") == {"": 0}
    assert "notes" not in relay.get("/readyz")
    one_lane.check_exactly_once(3)


def has_lanes(relay: Running, lanes: int) -> bool:
    return samples(relay, "outbox_lanes_owned") == {"": lanes}


def pending(relay: Running) -> dict[str, float]:
    """Return the rows waiting by lane, once there are some in every lane of the relay."""
    lanes = samples(relay, "outbox_pending_rows")
    assert lanes
    assert all(lanes.values()), lanes
    return lanes


def test_the_lag_counts_commands_that_are_not_committed_in_postgres(system: System) -> None:
    consumer = system.start("consumer")
    system.submit(COMMANDS)
    eventually(lambda: system.statuses() == {"pending": COMMANDS})
    with closing(system.connect()) as conn, conn.transaction():
        conn.execute("SELECT FROM consumed_offsets FOR UPDATE")  # no offset moves on
        system.submit(COMMANDS)
        eventually(lambda: total(consumer, "orchestrator_consumer_lag_records") == COMMANDS)


# ---- the gauges of the database, in this process -------------------------------------------------

Read = Callable[[str], float | None]
OFTEN = ProcessTimings(gauge_period_s=0.05, gauge_max_pause_s=0.1)


@contextmanager
def gauges_of(environ: Mapping[str, str], timings: ProcessTimings = OFTEN) -> Iterator[Read]:
    """Run the gauges of a relay that owns lane 0; yield a function that reads one by its name."""
    registry = new_registry("relay")
    metrics = RelayMetrics(registry, Health())
    metrics.owned = frozenset({0})

    def read(name: str) -> float | None:
        labels = {} if name == IDS else {"lane": "0"}
        return registry.get_sample_value(name, labels)

    with backlog_gauges(read_settings(environ), metrics, timings):
        yield read


IDS, PENDING = "orchestrator_worker_ids_used_ratio", "outbox_pending_rows"


def test_a_missing_permission_of_the_relay_affects_one_gauge_only(system: System) -> None:
    system.query("CREATE SCHEMA of_others")
    system.query("CREATE SEQUENCE of_others.numbers")
    with roles_made(system) as logins, gauges_of(logins.environ("relay")) as read:
        eventually(lambda: read(PENDING) == 0)
        eventually(lambda: read(IDS) == 0)
        system.query(f"REVOKE ALL ON SEQUENCE workers_id_seq FROM {logins.role('relay')}")
        eventually(lambda: is_unknown(read(IDS)))
        assert read(PENDING) == 0


def test_the_share_of_used_ids_is_that_of_the_current_sequence_or_unknown(system: System) -> None:
    system.query("CREATE SEQUENCE the_platforms")
    system.query("ALTER TABLE workers ALTER id SET DEFAULT nextval('the_platforms')")
    system.query("SELECT setval('the_platforms', 2100000000)")
    with gauges_of(system.environ) as read:
        assert is_unknown(read(IDS))
        eventually(lambda: read(IDS) == pytest.approx(2.1e9 / 2**31))
        assert read(PENDING) == 0
        # As on a standby: a read-write connection is not accepted.
        ((database,),) = system.query("SELECT current_database()")
        system.query(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        end_sessions(system, "orchestrator gauges")
        eventually(lambda: is_unknown(read(IDS)))
        eventually(lambda: read(PENDING) is None)  # the session may have ended between the two


def test_gauges_recover_from_a_postgres_that_stops_answering(system: System) -> None:
    third_look = Rule(READ_ID_SEQUENCE, swallow, hit=3)
    with (
        postgres_proxied(system, [third_look]) as url,
        gauges_of({**system.environ, "DATABASE_URL": url}, replace(OFTEN, gauge_silence_s=0.5)) as read,
    ):
        eventually(lambda: read(IDS) == 0)
        eventually(lambda: is_unknown(read(IDS)))
        assert third_look.done.is_set()
        eventually(lambda: read(IDS) == 0)


def is_unknown(value: float | None) -> bool:
    """Return whether this is the value that stands for unknown."""
    return value is not None and math.isnan(value)
