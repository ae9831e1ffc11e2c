"""`orchestrator doctor`: each fault is found, named, and said with what to do; nothing is changed."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Consumer, Node, ShareConsumer, TopicPartitionInfo, Uuid
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    TopicDescription,
)
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orchestrator.cli.doctor import render_finding
from orchestrator.config.settings import read_settings
from orchestrator.embedded import Servers
from orchestrator.embedded.server import HOST, free_port
from orchestrator.operations.doctor import consistency as doctor_consistency
from orchestrator.operations.doctor import kafka as doctor_kafka
from orchestrator.operations.doctor import postgres as doctor_postgres
from orchestrator.operations.doctor import runner as doctor
from orchestrator.operations.doctor import tables as doctor_tables
from orchestrator.operations.doctor.check import Finding
from orchestrator.operations.doctor.encryption import is_local
from orchestrator.operations.doctor.kafka import replication_remarks
from orchestrator.operations.doctor.runner import CHECKS, exit_code, run_all_checks
from orchestrator.runtime.database import SERVER_ENCODING
from outbox import connect, postgres
from testkit.disagreement import set_marker
from testkit.empty_installation import bare_system, run_command
from testkit.eventually import eventually
from testkit.proxied import WiredKafka, postgres_proxied
from testkit.proxy import Rule, proxy, swallow
from testkit.system import (
    PARTITIONS,
    System,
    deferred_workers,
    delete_before,
    recreate_input,
    set_config,
    take,
    topics_of,
)
from testkit.wire_protocol import PostgresConversation
from tests.acceptance.test_roles import Logins
from tests.faults.kafka_servers import own_kafka
from tests.faults.postgres_servers import installed, own_postgres, pooler, set_server
from tests.faults.secured_kafka import Acl, secured_kafka
from tests.faults.test_security import GROUP, READ, TOPIC, USER, Secured, acls

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"
PASSWORD = "planted-in-the-doctor"
DESCRIBE = AclOperation.DESCRIBE
AWAY_S = 30.0  # with both servers away


def look(system: System, **environ: str) -> dict[str, Finding]:
    """Return all findings by check: a line each, and no secret in it."""
    found = list(run_all_checks(read_settings(system.environ | environ)))
    assert [finding.check for finding in found] == list(CHECKS)
    for finding in found:
        assert len(render_finding(finding).splitlines()) == 1
        assert PASSWORD not in finding.text
    return {finding.check: finding for finding in found}


def bad(findings: dict[str, Finding]) -> dict[str, str]:
    """Return the state of each check that is not ok.

    Apart from processes, as few tests start any, and from encryption: servers in containers are other
    machines, the embedded ones are not.
    """
    found = {name: finding.state for name, finding in findings.items() if finding.state != "ok"}
    return {
        name: state
        for name, state in found.items()
        if name != "processes" and not name.endswith("encryption")
    }


# One broker cannot have two replicas: the only finding about the servers of the tests.
ONE_BROKER = {"kafka replication": "warning"}


def code_without_processes(found: dict[str, Finding], *also: str) -> int:
    """Return the exit code as if processes ran, unless `also` names the check of them."""
    return exit_code(one for name, one in found.items() if name != "processes" or name in also)


def check_fault(system: System, check: str, state: str, *words: str, **environ: str) -> bool:
    """See that a check finds what was planted and says what to do, and what the exit code is.

    No process needs to run.
    """
    found = look(system, **environ)
    assert found[check].state == state, found[check]
    for word in words:
        assert word in found[check].text
    expected = {"warning": 0, "failed": 1, "unreachable": 3}[state]
    assert code_without_processes(found, check) == expected
    return True


# ---- nothing is wrong -----------------------------------------------------------------------------


@pytest.mark.xdist_group("measures")
def test_a_system_at_work_is_well_and_is_not_disturbed(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    system.submit(20)
    system.check_exactly_once(20)
    owned = system.query("SELECT lane, epoch, batch_number FROM outbox_lane ORDER BY lane")
    started = time.monotonic()
    found = look(system)
    assert time.monotonic() - started < 10
    assert bad(found) == ONE_BROKER, found
    assert found["processes"].text == "1 consumer, 1 relay connected"
    assert exit_code(found.values()) == 0
    assert "one broker lost loses acknowledged records" in found["kafka replication"].text
    host = conninfo_to_dict(system.settings.database_url)["host"]
    encryption = {found[f"{server} encryption"].state for server in ("postgres", "kafka")}
    assert encryption == {"ok" if is_local(str(host)) else "warning"}
    assert system.query("SELECT lane, epoch, batch_number FROM outbox_lane ORDER BY lane") == owned
    system.submit(20)
    system.check_exactly_once(40)
    assert not relay.logged("in doubt")
    for process in (consumer, relay):
        process.stop()


def test_before_the_setup_it_says_to_run_it(servers: Servers, tmp_path: Path) -> None:
    with bare_system(servers, tmp_path) as bare:
        found = look(bare)
    assert exit_code(found.values()) == 1
    assert found["postgres schema"].state == found["kafka topics"].state == "failed"
    assert "lacks 001_workers.sql, 002_outbox.sql" in found["postgres schema"].text
    assert found["kafka topics"].text.count("run `orchestrator setup`") == 4
    others = {name for name, state in bad(found).items() if state == "skipped"}
    assert {"postgres permissions", "input positions", "markers"} <= others


# ---- Postgres -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planted", "check", "state", "words"),
    [
        (
            "DELETE FROM orchestrator_migrations WHERE version = 4",
            "postgres schema",
            "failed",
            "lacks 004_repairs.sql: run `orchestrator setup`",
        ),
        (
            "UPDATE orchestrator_migrations SET version = 999 WHERE version = 4",
            "postgres schema",
            "failed",
            "run the newer release",
        ),
        (
            "UPDATE outbox_identity SET lanes = 5; INSERT INTO outbox_lane (lane) VALUES (4)",
            "marker topic partitions",
            "failed",
            "for 5 lanes: run `orchestrator setup`",
        ),
        ("DELETE FROM outbox_identity", "postgres schema", "failed", "outbox_identity is empty"),
        (
            "SELECT setval('workers_id_seq', 1200000000)",
            "workers id sequence",
            "warning",
            "55.9% of 2,147,483,647 ids of workers.id (integer) are used: when workers_id_seq ends",
        ),
        ("SELECT setval('workers_id_seq', 2100000000)", "workers id sequence", "failed", "bigint"),
        (
            "ALTER TABLE outbox SET (autovacuum_enabled = false)",
            "postgres autovacuum",
            "failed",
            "off for table outbox, which only grows: set its autovacuum_enabled to true",
        ),
    ],
)
def test_a_fault_of_the_database_is_reported_with_its_remedy(
    system: System, planted: str, check: str, state: str, words: str
) -> None:
    system.query(planted)
    check_fault(system, check, state, words)


def test_workers_that_stay_deferred_are_named(one_lane: System) -> None:
    assert look(one_lane)["deferred workers"].text == "none"
    with deferred_workers(one_lane, 2) as workers:
        assert look(one_lane)["deferred workers"] == Finding("deferred workers", "ok", "2 just now")
        one_lane.query("UPDATE outbox_deferred SET deferred_at = now() - interval '5 min'")
        words = ("2, the oldest for 5", "locked by another session: ", ": end the transaction")
        check_fault(one_lane, "deferred workers", "failed", *words, *map(str, workers))


def test_what_waits_and_what_does_not_run_is_a_failure(one_lane: System) -> None:
    names = ("processes", "waiting rows", "parked rows", "dead letters")
    found = look(one_lane)
    assert [found[name].state for name in names] == ["failed", "ok", "ok", "ok"]
    check_fault(one_lane, "processes", "failed", "no consumer is connected", "no relay is connected")
    one_lane.accept(2)
    one_lane.query("UPDATE outbox SET created_at = created_at - interval '2 minutes'")
    check_fault(one_lane, "waiting rows", "failed", "orders are late, the oldest of lane 0 for 2.")
    one_lane.query(
        "INSERT INTO outbox_parked (lane, id, topic, key, value, message_id, created_at, reason)"
        " SELECT lane, id, topic, key, value, message_id, created_at, 'too large' FROM outbox"
    )
    check_fault(one_lane, "parked rows", "failed", "(2 too large): `orchestrator parked list`")
    with one_lane.consumer() as consumer, one_lane.lane() as lane:
        one_lane.produce(b"no command")
        take(consumer, 1)
        lane.recover()
        lane.run_once()
        lane.run_once()
    check_fault(one_lane, "dead letters", "failed", "1 dead letters wait", "orchestrator dlq list")


def test_lanes_are_checked_only_if_their_number_is_set(system: System) -> None:
    system.query("DELETE FROM outbox_lane WHERE lane > 1")
    system.query("UPDATE outbox_identity SET lanes = 2")
    assert look(system)["lanes"] == Finding("lanes", "ok", "2")
    check_fault(system, "lanes", "warning", "2; LANES=3 is ignored", "set LANES=2", LANES="3")
    check_fault(system, "lanes", "warning", "2; LANES=4 is ignored", "set LANES=2", LANES="4")


def test_the_last_remedy_of_the_runbook_for_ids_gives_none_that_is_there(system: System) -> None:
    (remedy,) = re.findall(r"`(ALTER SEQUENCE workers_id_seq MINVALUE[^`]+)`", RUNBOOK.read_text())
    check = "workers id sequence"
    system.accept(20)
    system.query("SELECT setval('workers_id_seq', 2147483647)")
    check_fault(system, check, "failed", "100.0% of 2,147,483,647 ids")
    system.query(remedy)
    system.accept(20)
    assert "0.0% of 2,147,483,648 ids of workers.id (integer)" in look(system)[check].text
    system.query("SELECT setval('workers_id_seq', -1)")
    check_fault(system, check, "failed", "100.0% of 2,147,483,648 ids")
    with pytest.raises(psycopg.errors.SequenceGeneratorLimitExceeded):  # not the primary key
        system.accept(1)


@pytest.mark.parametrize(
    ("adopted", "words"),
    [
        ("ALTER id DROP DEFAULT", "(integer) has no sequence"),
        ("ALTER id TYPE bigint", "of 2,147,483,647 ids of workers.id (bigint)"),
        (
            "ALTER id TYPE bigint, ALTER id DROP DEFAULT, ALTER id ADD GENERATED ALWAYS AS IDENTITY",
            "0.0% of 9,223,372,036,854,775,807 ids",
        ),
    ],
)
def test_the_ids_of_an_adopted_table_may_come_from_elsewhere(
    system: System, adopted: str, words: str
) -> None:
    if "IDENTITY" in adopted:
        system.query("ALTER TABLE workers ALTER id DROP DEFAULT")
        system.query("DROP SEQUENCE workers_id_seq")
    system.query(f"ALTER TABLE workers {adopted}")
    found = look(system)["workers id sequence"]
    assert (found.state, words in found.text) == ("ok", True), found


@pytest.mark.parametrize("whose", ["DATABASE {database}", "ROLE {role}"])
def test_commits_that_a_crash_may_lose_are_found_in_any_session(system: System, whose: str) -> None:
    with a_role(system) as (role, environ):
        database = conninfo_to_dict(system.settings.database_url)["dbname"]
        named = whose.format(database=database, role=role)
        system.query(f"ALTER {named} SET synchronous_commit = off")
        check = "postgres synchronous_commit"
        check_fault(system, check, "warning", "off for this", "set it to on", **environ)


def test_a_transaction_that_was_left_open_is_named(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_tables, "OLD_S", 0.0)
    secret = f"SELECT 'rtsp://user:{PASSWORD}@camera'"
    gid = uuid4().hex
    with closing(system.connect("monthly report")) as conn:
        conn.execute("BEGIN")
        conn.execute(f"INSERT INTO outbox_parked SELECT FROM ({secret}) AS s WHERE false".encode())
        pid = conn.info.backend_pid
        check = "postgres long transactions"
        end = f"session {pid} of monthly report has been open for"
        check_fault(system, check, "warning", end, f"pg_terminate_backend({pid})")
        conn.execute(f"PREPARE TRANSACTION '{gid}'".encode())
    try:
        check_fault(system, check, "warning", f"prepared transaction '{gid}' has been open for")
    finally:
        system.query(f"ROLLBACK PREPARED '{gid}'")
    found = look(system)
    assert bad(found) == ONE_BROKER
    assert found[check].text == "none is older than 0 ms"


def test_ages_that_a_role_may_not_see_are_not_reported_as_low(system: System) -> None:
    check = "postgres long transactions"
    with a_role(system) as (_, environ):
        with closing(system.connect("monthly report")) as conn:
            conn.execute("BEGIN")
            words = "none that this role may see is older than 5.0 m: pg_read_all_stats shows it all"
            assert look(system, **environ)[check] == Finding(check, "ok", words)
        alone = Finding(check, "ok", "none is older than 5.0 m")
        eventually(lambda: look(system, **environ)[check] == alone)


SLOW_VACUUM = """
    autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1
"""
VACUUM = "SELECT pid FROM pg_stat_activity WHERE query ~ '^autovacuum: VACUUM .*public.long'"


def test_a_long_autovacuum_is_not_reported_as_something_to_end(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_tables, "MANY_TRANSACTIONS", -1)
    with own_postgres() as own:
        set_server(own, "autovacuum_naptime", "1s")
        with installed(Servers(own.url, servers.bootstrap_servers), tmp_path) as system:
            system.query(
                f"CREATE TABLE long (x) WITH ({SLOW_VACUUM}) AS SELECT generate_series(1, 99999)"
            )
            system.query("DELETE FROM long")
            eventually(lambda: system.query(VACUUM))
            with a_role(system) as (_, environ):  # which may not see what a process is
                found = look(system, **environ)["postgres long transactions"]
            assert system.query(VACUUM)
    assert found.state == "ok", found


def test_dead_rows_that_nothing_removes_are_counted(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_tables, "DEAD_ROWS", 900)
    monkeypatch.setattr(doctor_tables, "VACUUM_LATE_S", 0.0)
    check, dead = "postgres autovacuum", "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = %s"
    for table in ("workers", "outbox"):  # autovacuum must not remove the rows that are counted
        for threshold, value in (("vacuum_threshold", 1_000_000), ("vacuum_insert_threshold", -1)):
            system.query(f"ALTER TABLE {table} SET (autovacuum_{threshold} = {value})")
    system.query(f"INSERT INTO workers (worker_id, scenario_uuid, camera_url) {MANY_WORKERS}")
    system.query("ANALYZE workers")
    system.query("DELETE FROM workers WHERE id <= 1500")
    eventually(lambda: system.query(dead, "workers") == [(1500,)])
    assert look(system)[check].state == "ok"  # a fifth of 10,000 rows may be dead, and twice as many
    system.query("ALTER TABLE workers SET (autovacuum_vacuum_scale_factor = 0.01)")
    check_fault(system, check, "warning", "workers has 1,500 dead rows", "run VACUUM workers")
    system.accept(1000)
    system.query("DELETE FROM outbox")
    eventually(lambda: system.query(dead, "outbox") == [(1000,)])
    check_fault(system, check, "warning", "outbox has 1,000 dead rows", "run VACUUM outbox")


MANY_WORKERS = "SELECT gen_random_uuid(), gen_random_uuid(), '' FROM generate_series(1, 10000)"


@contextmanager
def a_role(system: System) -> Iterator[tuple[str, dict[str, str]]]:
    """Make a role that may do what consumer and relay do; give its name and its environment."""
    role = f"doctor_{uuid4().hex[:12]}"
    system.query(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    try:
        for objects in ("TABLES", "SEQUENCES"):
            system.query(f"GRANT ALL ON ALL {objects} IN SCHEMA public TO {role}")
        url = make_conninfo(system.settings.database_url, user=role, password=PASSWORD)
        yield role, {"DATABASE_URL": url}
    finally:
        system.query(f"DROP OWNED BY {role}")
        system.query(f"DROP ROLE {role}")


def test_missing_permissions_are_reported_as_grants(system: System) -> None:
    with a_role(system) as (role, environ):
        assert bad(look(system, **environ)) == ONE_BROKER
        system.query(f"REVOKE INSERT, UPDATE ON workers FROM {role}")
        system.query(f"REVOKE ALL ON SEQUENCE workers_id_seq FROM {role}")
        system.query(f"REVOKE DELETE ON outbox FROM {role}")
        system.query(f"REVOKE INSERT ON outbox FROM {role}")
        grant = f"GRANT DELETE ON TABLE outbox TO {role}"
        check_fault(
            system,
            "postgres permissions",
            "failed",
            "lacks permissions for the relay",
            grant,
            **environ,
        )
        system.query(f"GRANT INSERT ON workers TO {role}")
        found = look(system, **environ)["postgres permissions"]
        assert "lacks permissions for the consumer and relay" in found.text
        grants = found.text.partition("run as the owner: ")[2].split("; ")
        assert f"GRANT USAGE, SELECT ON SEQUENCE workers_id_seq TO {role}" in grants
        for grant in grants:
            system.query(grant)
        assert bad(look(system, **environ)) == ONE_BROKER
        for objects in ("TABLES", "SEQUENCES"):
            system.query(f"REVOKE ALL ON ALL {objects} IN SCHEMA public FROM {role}")
        words = f"{role} has no permission of any role: see docs/security.md"
        check_fault(system, "postgres permissions", "failed", words, **environ)


@pytest.mark.parametrize(
    ("role", "state"),
    [("consumer", "ok"), ("relay", "ok"), ("operator", "skipped"), ("owner", "ok")],
)
def test_permissions_that_a_login_does_not_need_are_not_reported(
    system: System, role: str, state: str
) -> None:
    logins = Logins(system, uuid4().hex[:12])
    try:
        assert logins.make_roles(system.settings.database_url) == ""
        logins.make_logins()
        found = look(system, **logins.environ(role))
    finally:
        logins.remove()
    assert code_without_processes(found) == 0, found
    assert found["postgres permissions"].state == state
    assert found["postgres schema"].state == found["workers id sequence"].state == "ok"
    hidden = {"consumer": 9, "relay": 2, "operator": 2, "owner": 0}[role]
    assert sum(finding.state == "skipped" for finding in found.values()) == hidden, found


def test_a_pooler_that_lends_processes_by_the_transaction_is_found(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_postgres() as server, pooler(server, "transaction") as pgbouncer:
        on = Servers(server.url, servers.bootstrap_servers)
        with installed(on, tmp_path) as own:
            url = pgbouncer.url(own)
            words = "through a pool in session mode"
            check_fault(own, "postgres sessions", "failed", words, DATABASE_URL=url)
            assert bad(look(own)) == ONE_BROKER
            monkeypatch.setattr(postgres, "SILENCE_S", 1.0)
            second = [Rule(postgres.SERVER_PROCESS, swallow, hit=3)]  # the other session
            with proxy(PostgresConversation, (HOST, int(pgbouncer.port)), second) as port:
                url = make_conninfo(url, host=HOST, port=port)
                words = "could not be checked: ServerSilent: no answer for 1 s"
                check_fault(own, "postgres sessions", "failed", words, DATABASE_URL=url)


@pytest.mark.parametrize(("skew", "state"), [(5.5, "warning"), (-90.5, "failed")])
def test_a_wrong_clock_is_reported(
    system: System, monkeypatch: pytest.MonkeyPatch, skew: float, state: str
) -> None:
    ours = SimpleNamespace(time=lambda: time.time() + skew)
    monkeypatch.setattr(doctor_postgres, "time", ours)
    check_fault(system, "postgres clock", state, f"{int(abs(skew))}.", "same time server (NTP)")


# ---- Kafka ----------------------------------------------------------------------------------------


def test_a_topic_that_is_missing_is_named_and_the_others_are_looked_at(system: System) -> None:
    admin, topic = AdminClient(dict(system.settings.kafka)), system.settings.output_topic
    admin.delete_topics([topic])[topic].result()
    eventually(lambda: topic not in admin.list_topics(timeout=10).topics)
    check_fault(system, "kafka topics", "failed", f"topic {topic} is missing: create it or run")
    assert look(system)["input positions"].state == "ok"


@pytest.mark.parametrize(
    ("replicas", "in_sync", "minimum", "leader", "said"),
    [
        (3, 3, 2, True, []),
        (3, 2, 2, True, ["warning partition 7 with replicas out of sync: check the brokers"]),
        (3, 1, 2, True, ["failed partition 7 with too few replicas in sync: bring the brokers back"]),
        (3, 3, 2, False, ["failed partition 7 without a leader: bring the brokers back"]),
        (3, 3, 1, True, ["warning one broker alone may acknowledge records: set min.insync.repl"]),
        (3, 3, 3, True, ["warning all 3 replicas must be in sync, one broker away stops work: use"]),
        (2, 2, 1, True, ["warning two replicas, one broker away stops work or leaves one copy: use"]),
        (2, 2, 2, True, ["warning two replicas, one broker away stops work or leaves one copy: use"]),
        (1, 1, 1, True, ["warning one replica, one broker lost loses acknowledged records: use 3"]),
    ],
)
def test_missing_replicas_are_reported(
    replicas: int, in_sync: int, minimum: int, leader: bool, said: list[str]
) -> None:
    """One broker cannot show most of this; three take minutes."""
    nodes = [Node(number, HOST, 9092) for number in range(replicas)]
    leading = nodes[0] if leader else Node(-1, "", -1)
    partition = TopicPartitionInfo(7, leading, nodes, nodes[:in_sync])
    topic = TopicDescription("topic", Uuid(0, 1), False, [partition])
    remarks = list(replication_remarks(topic, {"min.insync.replicas": str(minimum)}))
    assert len(remarks) == len(said), remarks
    assert [
        f"{state} {text}"[: len(words)] for words, (state, text) in zip(said, remarks, strict=True)
    ] == said


def test_a_transaction_time_out_above_the_brokers_limit_is_reported(system: System) -> None:
    asked = {"KAFKA_CONFIG_TRANSACTION_TIMEOUT_MS": "3600000"}
    words = "set transaction.max.timeout.ms of the brokers to 3600000 or more"
    check_fault(system, "kafka transactions", "failed", words, **asked)


@pytest.mark.slow
def test_permissions_that_the_brokers_deny_are_named(servers: Servers, tmp_path: Path) -> None:
    with secured_kafka(tmp_path) as broker:
        on = Servers(servers.database_url, broker.kafka.bootstrap_servers)
        with installed(on, tmp_path) as system:
            own = Secured(system, broker, password=PASSWORD)
            every, settings = acls(system), system.settings
            found = look(system, **own.environ)
            assert code_without_processes(found) == 0, found
            assert found["kafka acls"].state == "warning"
            dlq = f"before `dlq retry` grant Write, DescribeConfigs on topic {settings.input_topic}"
            assert dlq in found["kafka acls"].text
            assert found["marker topic policy"].state == "ok"
            for right, check, words in (
                ("Write output", "kafka acls", f"grant Write on topic {system.settings.output_topic}"),
                ("Read input", "kafka acls", f"grant Read on topic {system.settings.input_topic}"),
                ("Write marker topic", "kafka acls", f"grant Write on topic {settings.marker_topic}"),
                ("Write ids", "kafka transactions", "grant Write on the transactional ids"),
            ):
                broker.revoke(USER, every[right])
                eventually(partial(check_fault, system, check, "failed", words, **own.environ), 40)
                broker.grant(USER, every[right])
            check_others(own, every)
            broker.set_password(USER, "another")
            words = "Authentication failed"
            check_fault(system, "kafka reachable", "failed", words, **own.environ)


def check_others(own: Secured, every: dict[str, Acl]) -> None:
    """Check that nothing is reported for the logins of one process, or of the operator."""
    system = own.system
    describe = [Acl(DESCRIBE, GROUP, every["Read group"].name)]
    describe += [Acl(READ, TOPIC, topic) for topic in topics_of(system)]
    users = {
        "consumer": ([every["Read input"], every["Read group"]], "ok"),
        "relay": (
            [r for name, r in every.items() if name not in {"Read input", "Read group"}],
            "warning",
        ),
        "operator": (describe, "skipped"),
        "stranger": ([], "failed"),
    }
    for user, (granted, state) in users.items():
        own.kafka.set_password(user, PASSWORD)
        if granted:
            own.kafka.grant(user, *granted)
        environ = own.environ | {"KAFKA_CONFIG_SASL_USERNAME": user}

        def is_right(environ: dict[str, str] = environ, state: str = state) -> bool:
            found = look(system, **environ)
            failed = code_without_processes(found) != 0
            return found["kafka acls"].state == state and failed == (state == "failed")

        eventually(is_right)


# ---- both -----------------------------------------------------------------------------------------


def consume(system: System, records: int) -> None:
    """Let a consumer take so many commands and show its offsets."""
    system.submit(records)
    with system.consumer() as session:
        take(session, records)


def test_a_marker_that_is_ahead_of_postgres_is_found_with_its_repair(system: System) -> None:
    set_marker(system, 99, lane=2)
    words = "lane 2: marker_ahead: the marker in Kafka is 99, the batch in Postgres is 0: "
    check_fault(system, "markers", "failed", words + "orchestrator repair lane 2")


def test_a_recreated_input_topic_is_found_with_its_repair(system: System) -> None:
    consume(system, 20)
    recreate_input(system)
    for partition in range(PARTITIONS):
        words = f"partition {partition}: topic_recreated: orchestrator repair partition {partition}"
        check_fault(system, "input positions", "failed", words)


def test_records_that_are_gone_are_found_with_the_repair(system: System) -> None:
    consume(system, 20)
    system.query("UPDATE consumed_offsets SET next_offset = 0 WHERE partition = 1")
    delete_before(system, system.settings.input_topic, 1, 1)
    words = "partition 1: offset_out_of_range: orchestrator repair partition 1"
    check_fault(system, "input positions", "failed", words)


def test_offsets_in_kafka_ahead_of_the_positions_are_reported(system: System) -> None:
    consume(system, 20)
    eventually(lambda: look(system)["input positions"].state == "ok")
    system.query("UPDATE consumed_offsets SET next_offset = next_offset - 1 WHERE partition = 0")
    words = "partition 0: Kafka has offset"
    eventually(partial(check_fault, system, "input positions", "warning", words))


# ---- servers away ---------------------------------------------------------------------------------


def nowhere() -> str:
    """Return an address without a listener, with a password in it."""
    return f"postgresql://vap:{PASSWORD}@{HOST}:{free_port()}/x?options=-csecret%3D{PASSWORD}"


def test_a_server_that_is_away_leaves_the_other_ones_checks(system: System) -> None:
    found = look(system, DATABASE_URL=nowhere())
    assert exit_code(found.values()) == 3
    assert found["postgres reachable"].state == "unreachable"
    assert "Connection refused" in found["postgres reachable"].text
    assert found["kafka topics"].state == found["kafka version"].state == "ok"
    assert found["markers"] == Finding("markers", "skipped", "not checked: Postgres is unreachable")

    found = look(system, KAFKA_BOOTSTRAP_SERVERS=f"{HOST}:{free_port()}")
    assert exit_code(found.values()) == 3
    assert found["kafka reachable"].state == "unreachable"
    assert "Connection refused" in found["kafka reachable"].text
    assert found["postgres schema"].state == found["workers id sequence"].state == "ok"
    assert found["markers"] == Finding("markers", "skipped", "not checked: Kafka is unreachable")


WITHOUT_SERVERS = {"settings", "processes", "postgres encryption", "kafka encryption"}


@pytest.mark.xdist_group("measures")
def test_with_both_servers_away_it_ends_soon(system: System) -> None:
    started = time.monotonic()
    kafka = f"{HOST}:{free_port()}"
    states = bad(look(system, DATABASE_URL=nowhere(), KAFKA_BOOTSTRAP_SERVERS=kafka))
    assert time.monotonic() - started < AWAY_S
    others = dict.fromkeys([name for name in CHECKS if name not in WITHOUT_SERVERS], "skipped")
    away = {"postgres reachable": "unreachable", "kafka reachable": "unreachable"}
    assert states == others | away


SETTINGS = postgres.SET_GUARANTEES  # as it is on the wire
for number, value in enumerate(("%(local)s", "%(schema)s", "%(statement_timeout)s"), 1):
    SETTINGS = SETTINGS.replace(value, f"${number}")


@pytest.mark.xdist_group("measures")
@pytest.mark.parametrize("silent_at", ["", SETTINGS], ids=["start", "statement"])
def test_a_postgres_that_accepts_and_stays_silent_is_given_up(
    system: System, monkeypatch: pytest.MonkeyPatch, silent_at: str
) -> None:
    monkeypatch.setattr(postgres, "SILENCE_S", 1.0)
    monkeypatch.setitem(postgres.KEEPALIVES, "connect_timeout", 2)
    with postgres_proxied(system, [Rule(silent_at, swallow, hit=0)]) as url:
        started = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match=r"timeout expired|no answer for 1 s"):
            connect(url, "test")
        assert time.monotonic() - started < 5
        found = look(system, DATABASE_URL=url)
        assert time.monotonic() - started < AWAY_S
    assert found["postgres reachable"].state == "unreachable"
    assert found["postgres version"].state == "skipped"
    assert found["kafka topics"].state == "ok"


@pytest.mark.xdist_group("measures")
def test_a_postgres_that_falls_silent_is_hung_up_on(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_real, silence_s = doctor.BUDGET_S / doctor_postgres.ANSWER_TIMEOUT_S, 2.0
    monkeypatch.setattr(doctor_postgres, "ANSWER_TIMEOUT_S", silence_s)
    monkeypatch.setattr(doctor, "BUDGET_S", in_real * silence_s)
    with postgres_proxied(system, [Rule(SERVER_ENCODING, swallow)]) as url:
        started = time.monotonic()
        found = look(system, DATABASE_URL=url)
        assert time.monotonic() - started < AWAY_S
    states = bad(found)
    lost = [name for name, state in states.items() if state == "unreachable"]
    assert len(lost) == 1, states
    assert "the connection was lost: ServerSilent: no answer for 2 s" in found[lost[0]].text
    assert found["postgres autovacuum"].state == "skipped"
    assert found["kafka topics"].state == "ok"


@pytest.mark.parametrize(
    ("before", "check"),
    [("kafka version", "kafka topics"), ("kafka replication", "kafka transactions")],
)
def test_a_kafka_that_is_lost_on_the_way_is_unreachable(
    wired_lane: System, wired: WiredKafka, monkeypatch: pytest.MonkeyPatch, before: str, check: str
) -> None:
    monkeypatch.setattr(doctor_kafka, "REQUEST_S", 1.0)
    monkeypatch.setattr(doctor_consistency, "TRANSACTIONAL_ID_S", 1.0)
    with ExitStack() as running:
        kafka = running.enter_context(wired.proxied())
        checks = run_all_checks(read_settings(wired_lane.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka}))
        assert next(one for one in checks if one.check == before).state in {"ok", "warning"}
        running.close()
        lost, *others = checks
    assert (lost.check, lost.state) == (check, "unreachable"), lost
    assert lost.text.startswith("no broker answers any more: ")
    assert lost.text.endswith("run doctor again, and see its line `kafka reachable`")
    asked = {one.state for one in others if one.check != "processes"}  # Postgres knows that, too
    assert asked == {"skipped"}  # and not waited for
    assert exit_code([lost, *others]) == 3


def test_a_broker_that_cannot_be_reached_where_it_says_is_named(
    wired_lane: System, wired: WiredKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_kafka, "REQUEST_S", 1.0)
    host, port = wired.behind_proxy  # where it answers, and says that it is at the proxy
    kafka = {"KAFKA_BOOTSTRAP_SERVERS": f"{host}:{port}"}
    checks = run_all_checks(read_settings(wired_lane.environ | kafka))
    with wired.proxied():
        assert next(one for one in checks if one.check == "kafka reachable").state == "ok"
    found = next(one for one in checks if one.check == "kafka version")
    assert found.state == "unreachable", found
    assert f"no answer from {HOST}:{wired.proxy_port}: see that it runs" in found.text


def test_a_marker_topic_that_is_not_compacted_is_reported_until_setup_alters_it(
    one_lane: System,
) -> None:
    topic = one_lane.settings.marker_topic
    set_config(one_lane, topic, "cleanup.policy", "delete")
    relay = one_lane.start("relay")
    named = f"topic {topic} must be compacted: set its cleanup.policy to compact"
    eventually(lambda: named in relay.get("/readyz"))
    one_lane.accept(5)
    words = f"cleanup.policy of {topic} is delete: run `orchestrator setup`, which sets compact"
    check_fault(one_lane, "marker topic policy", "failed", words)
    assert one_lane.orders() == []  # without its marker nothing is published

    assert run_command(one_lane.environ, "setup").returncode == 0
    one_lane.check_exactly_once(5)
    found = look(one_lane)
    assert bad(found) == ONE_BROKER
    assert found["marker topic policy"].text == f"{topic} is compacted"
    relay.stop()


@pytest.mark.parametrize("policy", ["compact,delete", "delete"])
def test_markers_that_retention_may_delete_are_reported(system: System, policy: str) -> None:
    topic = system.settings.marker_topic
    set_config(system, topic, "cleanup.policy", policy)
    check_fault(system, "marker topic policy", "failed", f"cleanup.policy of {topic} is {policy}")


# ---- settings of topics, and the group ------------------------------------------------------------


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("input_topic", "of the commands of a key only the last is kept"),
        ("output_topic", "of the orders of a scenario only the last is kept"),
        ("dead_letter_topic", "of the dead letters of a key only the last is kept"),
    ],
)
def test_a_compacted_topic_is_reported_with_what_it_loses(
    system: System, setting: str, words: str, policy: str
) -> None:
    topic = getattr(system.settings, setting)
    set_config(system, topic, "cleanup.policy", policy)
    named = f"cleanup.policy of {topic} is {policy}"
    check_fault(system, "topic settings", "warning", named, words, "set it to delete")


@pytest.mark.parametrize(
    ("compression", "megabytes"), [("producer", "1,032 MB"), ("gzip", "1,032 MB"), ("zstd", "95 MB")]
)
def test_an_input_whose_batches_may_need_gigabytes_is_reported(
    system: System, compression: str, megabytes: str
) -> None:
    set_config(system, system.settings.input_topic, "compression.type", compression)
    words = (f"may become {megabytes} in a consumer", "set compression.type to uncompressed")
    check_fault(system, "topic settings", "warning", *words)


def test_a_dead_letter_topic_that_large_ones_do_not_fit_is_reported(system: System) -> None:
    topic = system.settings.dead_letter_topic
    set_config(system, topic, "max.message.bytes", "100000")
    words = (f"max.message.bytes of {topic} is 100,000", "set it to 1048588")
    check_fault(system, "topic settings", "warning", *words)


def test_a_time_out_that_the_brokers_do_not_accept_is_reported(system: System) -> None:
    words = ("session.timeout.ms is 1000", "set KAFKA_CONFIG_SESSION_TIMEOUT_MS within")
    timeout = {
        "KAFKA_CONFIG_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_CONFIG_HEARTBEAT_INTERVAL_MS": "300",
    }
    check_fault(system, "consumer group", "failed", *words, **timeout)


OTHER_KINDS = {
    "consumer": ({"group.protocol": "consumer"}, "failed", "set CONSUMER_GROUP"),
    "assignor": (
        {"partition.assignment.strategy": "cooperative-sticky"},
        "failed",
        "set CONSUMER_GROUP",
    ),
    "same": ({}, "warning", "has 1 member, and 0 of our consumers run"),
}


@pytest.mark.fault(72)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_client_in_our_group_is_reported(system: System, kind: str) -> None:
    group = system.settings.consumer_group
    config, state, words = OTHER_KINDS[kind]
    other = Consumer({"group.id": group, **dict(system.settings.kafka), **config})
    with closing(other):
        other.subscribe([system.settings.input_topic])
        eventually(lambda: other.poll(0.1) is None and other.assignment())
        found = look(system)["consumer group"]
        assert (found.state, f"group {group}" in found.text, words in found.text) == (state, True, True)
    assert look(system)["consumer group"].state == ("failed" if kind == "consumer" else "ok")


@pytest.mark.fault(72)
@pytest.mark.slow
def test_a_share_group_of_our_name_is_reported(servers: Servers, tmp_path: Path) -> None:
    with ExitStack() as stack:
        kafka = stack.enter_context(own_kafka(version="4.4.0"))  # it has share groups by default
        on = Servers(servers.database_url, kafka.bootstrap_servers)
        system = stack.enter_context(installed(on, tmp_path))
        other = ShareConsumer({"group.id": system.settings.consumer_group, **system.settings.kafka})
        with closing(other):
            other.subscribe([system.settings.input_topic])
            eventually(lambda: other.poll(0.5) or look(system)["consumer group"].state == "failed", 60)
            consumer = system.start("consumer")
            named = "set CONSUMER_GROUP to a name of its own (INCONSISTENT_GROUP_PROTOCOL)"
            eventually(lambda: named in consumer.get("/readyz"))
            consumer.stop()
