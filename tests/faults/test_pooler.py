"""PgBouncer in front of Postgres: what works through it works, what cannot is refused by name."""

import re
from contextlib import closing
from functools import partial

import psycopg
import pytest

from orchestrator.embedded import EmbeddedPostgres
from outbox.lane_rows import read_identity
from outbox.membership import join, read_membership
from outbox.pooler import TransactionPoolingDetected
from testkit.eventually import eventually
from testkit.system import Running, System
from tests.faults.postgres_servers import pooler

pytestmark = [pytest.mark.fault(33), pytest.mark.xdist_group("own servers: PostgreSQL")]


def counted(consumer: Running, result: str) -> float:
    """Return how many records the consumer has counted as this."""
    series = rf'^orchestrator_records_total{{result="{result}"}} (\S+)'
    return float(re.findall(series, consumer.get("/metrics"), re.MULTILINE)[0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"default_pool_size": "1"},
        {"server_round_robin": "1", "min_pool_size": "3"},
    ],
    ids=["quiet", "one process", "in turn"],
)
def test_the_relay_detects_a_pooler_in_transaction_mode(
    own: System, postgres: EmbeddedPostgres, settings: dict[str, str]
) -> None:
    own.accept(10)
    with pooler(postgres, "transaction", **settings) as pgbouncer:
        relay = own.start("relay", DATABASE_URL=pgbouncer.url(own))
        eventually(lambda: "PgBouncer" in relay.get("/readyz"))
        assert '"ready": false' in relay.get("/readyz")
        assert relay.logged("connect it directly, or through a pool in session mode")
        assert own.query("SELECT sum(epoch), sum(batch_number) FROM outbox_lane") == [(0, 0)]
        assert own.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
        relay.stop()
    own.start("relay")  # as it was told to be
    own.check_exactly_once(10)


def test_a_pooler_that_changes_its_mode_is_found_out_at_work(
    own: System, postgres: EmbeddedPostgres
) -> None:
    with pooler(postgres, "session") as pgbouncer:
        relay = own.start("relay", DATABASE_URL=pgbouncer.url(own))
        own.accept(10)
        own.check_exactly_once(10)
        pgbouncer.kill()
        pgbouncer.settings["pool_mode"] = "transaction"
        pgbouncer.start()
        eventually(lambda: "PgBouncer" in relay.get("/readyz"))
        relay.stop()
    own.accept(10)
    own.start("relay")
    own.check_exactly_once(20)


def test_a_lock_that_is_not_where_the_session_is_ends_the_membership(own: System) -> None:
    with closing(own.connect()) as member:
        identity = read_identity(member)
        join(member, identity)
        assert read_membership(member, identity).members == 1
        member.execute("SELECT pg_advisory_unlock_all()")  # as seen from another process of a pool
        with pytest.raises(TransactionPoolingDetected):
            read_membership(member, identity)


@pytest.mark.slow
def test_consumers_work_through_a_pooler_in_transaction_mode(
    own: System, postgres: EmbeddedPostgres
) -> None:
    with pooler(postgres, "transaction") as pgbouncer:
        through = {"DATABASE_URL": pgbouncer.url(own), "BATCH_SIZE": "5"}
        own.start("relay")
        consumers = [own.start("consumer", **through), own.start("consumer", **through)]
        for turn in range(3):
            own.submit(100)
            eventually(partial(has_workers, own, 100 * (turn + 1)), 30)
            consumers[-2].kill()  # the next one is lent what this one used
            consumers.append(own.start("consumer", **through))
        own.submit(100)
        own.check_exactly_once(400)
        for consumer in consumers:
            assert not consumer.logged("prepared statement")
        for consumer in consumers[-2:]:
            assert counted(consumer, "duplicate") == 0
            consumer.stop()


@pytest.mark.slow
def test_a_consumer_frozen_in_a_transaction_of_the_pools_loses_it(
    own: System, postgres: EmbeddedPostgres
) -> None:
    with pooler(postgres, "transaction", default_pool_size="3", server_round_robin="1") as pgbouncer:
        through = {"DATABASE_URL": pgbouncer.url(own)}
        frozen = own.start("consumer", crash_at="consumer.enqueued:1:freeze", **through)
        own.start("relay")
        own.submit(20)
        frozen.wait_frozen()
        assert own.query(IN_TRANSACTION) == [(1,)]
        eventually(lambda: own.query(IN_TRANSACTION) == [(0,)])  # after 10 s, as we ask the server
        frozen.thaw()
        own.check_exactly_once(20)
        with closing(psycopg.connect(pgbouncer.url(own), autocommit=True)) as stranger:
            for _ in range(6):  # whatever process the pool lends
                assert stranger.execute("SHOW lock_timeout", prepare=False).fetchone() == ("0",)


IN_TRANSACTION = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"


def has_workers(system: System, workers: int) -> bool:
    return sum(system.statuses().values()) >= workers


def test_both_work_through_a_pooler_in_session_mode(own: System, postgres: EmbeddedPostgres) -> None:
    with pooler(postgres, "session") as pgbouncer:
        processes = [own.start(role, DATABASE_URL=pgbouncer.url(own)) for role in ("consumer", "relay")]
        own.submit(100)
        own.check_exactly_once(100)
        for process in processes:
            process.stop()
