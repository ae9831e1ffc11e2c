"""Least privilege: each process works under the role that is its own, and that role can do no more."""

import argparse
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from uuid import uuid4

import msgspec
import psycopg
import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from psycopg.conninfo import make_conninfo

from orchestrator.config.settings import read_settings
from orchestrator.consumer import offsets
from orchestrator.consumer.handled import find_handled
from orchestrator.consumer.loop import CONSUMER_SESSION
from orchestrator.consumer.offsets import OffsetMove, PartitionRefusal
from orchestrator.contract import workers
from orchestrator.contract.messages import DeployOrder
from orchestrator.embedded import Servers
from orchestrator.embedded.postgres import postgres_binaries
from orchestrator.operations.status.status import count_consumers
from orchestrator.runtime.migrations import check_current, migrate, read_migrations
from outbox import (
    RELAY_SESSION,
    Connection,
    Message,
    check_id_sequence,
    connect,
    count_lanes,
    deferred_rows,
    enqueue,
    lane_rows,
    outbox_rows,
    transaction,
)
from outbox import membership as lanes
from outbox.admin import Migration, count_parked, count_relays
from outbox.lane_rows import LaneRow
from outbox.outbox_rows import ClaimRequest
from outbox.timings import PRODUCTION
from testkit.disagreement import is_refused, set_marker
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import Running, System, delete_topics, limit_messages, topics_of
from tests.acceptance.test_secrets import FOUND, answers, check, secret
from tests.faults.postgres_servers import installed
from tests.faults.secured_kafka import SCRAM, Acl, SecuredKafka
from tests.faults.test_security import wait_for_complaint

FILE = Path(__file__).parents[2] / "schema" / "roles.sql"
ROLES = ("owner", "consumer", "relay", "operator")
ROLE = re.compile(rf"orchestrator_(?:{'|'.join(ROLES)})")
NOW_S = 45  # for what takes a consumer and a relay a moment


@dataclass(frozen=True)
class Logins:
    """An installation with its roles, under names of its own; a login a role, member of that alone."""

    system: System
    name: str

    def role(self, role: str) -> str:
        """Return the name of a group role."""
        return f"orchestrator_{role}_{self.name}"

    def login(self, role: str) -> str:
        """Return the name of the login that is a member."""
        return f"{role}_{self.name}"

    def url(self, role: str) -> str:
        """Return the address for that login."""
        login = self.login(role)
        return make_conninfo(self.system.settings.database_url, user=login, password=login)

    def environ(self, role: str) -> dict[str, str]:
        """Return the settings of a process that logs in so."""
        return self.system.environ | {"DATABASE_URL": self.url(role)}

    def start(self, process: str) -> Running:
        """Start a process under the role of its name."""
        return self.system.start(process, **self.environ(process))

    def connect(self, role: str) -> Connection:
        """Open a session as that login."""
        return connect(self.url(role), f"test {role}")

    def make_roles(self, url: str) -> str:
        """Run the file with psql, with the names of this test; return the errors of psql."""
        script = self.system.directory / "roles.sql"
        script.write_text(ROLE.sub(rf"\g<0>_{self.name}", FILE.read_text()))
        psql = [str(postgres_binaries() / "psql"), "--no-psqlrc", "-v", "ON_ERROR_STOP=1"]
        command = [*psql, "-f", str(script), url]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    def make_logins(self) -> None:
        """Make the logins; what the owner's makes belongs to its role."""
        for role in ROLES:
            login, group = self.login(role), self.role(role)
            self.system.query(f"CREATE ROLE {login} LOGIN PASSWORD '{login}' IN ROLE {group}")
        self.system.query(f"ALTER ROLE {self.login('owner')} SET role = {self.role('owner')}")

    def remove(self) -> None:
        """Remove all of them: roles belong to the server, which outlives the installation."""
        query = self.system.query
        mine = [self.login(role) for role in ROLES] + [self.role(role) for role in ROLES]
        found = query("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", mine)
        for (role,) in found:
            query(f"REASSIGN OWNED BY {role} TO CURRENT_USER")
            query(f"DROP OWNED BY {role}")
        for (role,) in found:
            query(f"DROP ROLE {role}")


@contextmanager
def roles_made(system: System) -> Iterator[Logins]:
    """Make roles and logins for an installation, and take them away again."""
    made = Logins(system, uuid4().hex[:12])
    try:
        # In PostgreSQL 14 PUBLIC may create tables in `public`; docs/security.md revokes that.
        system.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        assert made.make_roles(system.settings.database_url) == ""
        made.make_logins()
        yield made
    finally:
        system.end()
        made.remove()


@pytest.fixture
def logins(system: System) -> Iterator[Logins]:
    with roles_made(system) as made:
        yield made


@pytest.mark.parametrize(("name", "role"), [(CONSUMER_SESSION, "consumer"), (RELAY_SESSION, "relay")])
def test_a_session_is_no_process_whose_login_may_not_do_its_work(
    logins: Logins, name: str, role: str
) -> None:
    for other in ROLES:
        with closing(connect(logins.url(other), name)), closing(logins.connect("operator")) as conn:
            counts = {"consumer": count_consumers(conn), "relay": count_relays(conn)}
        assert counts.pop(role) == (other in {role, "owner"})
        assert set(counts.values()) == {0}


def command(length: int) -> bytes:
    """Return a command whose order is about so long."""
    url = f"rtsp://user:pw@camera/{'x' * length}"
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": url})


# ---- what they need --------------------------------------------------------------------------------


def test_each_process_does_all_its_work_under_its_own_role(logins: Logins) -> None:
    system = logins.system
    limit_messages(system, 4000)
    consumer, relay = logins.start("consumer"), logins.start("relay")
    system.submit(40)
    system.produce(command(5000), b"no command", None, key=b"key")
    eventually(lambda: system.statuses() == {"deployed": 40, "pending": 1}, NOW_S)
    eventually(lambda: system.query("SELECT count(*) FROM outbox_parked") == [(1,)], NOW_S)
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 2, NOW_S)
    eventually(lambda: "outbox_pending_rows{" in relay.get("/metrics"), NOW_S)

    consumer.stop()
    system.query("UPDATE consumed_offsets SET next_offset = 0, decide_again = true")
    again = logins.start("consumer")  # decides everything again, without effect on workers
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 4, NOW_S)
    assert system.query("SELECT count(*) FROM workers") == [(41,)]
    for process in (again, relay):
        process.stop()
    for process in (consumer, again, relay):
        assert not process.logged("permission denied"), process.log.read_text()

    audited = run_command(logins.environ("operator"), "audit", "--json")
    assert audited.returncode == 0, audited.stderr
    found = msgspec.json.decode(audited.stdout)
    assert (found["accepted"], found["published"], found["parked"]) == (41, 40, 1)


def test_the_owner_migrates_repairs_and_audits(logins: Logins, monkeypatch: pytest.MonkeyPatch) -> None:
    system, owner = logins.system, logins.environ("owner")
    done = run_command(owner, "setup")
    assert done.returncode == 0, done.stderr

    set_marker(system, 7)
    relay = logins.start("relay")
    eventually(lambda: is_refused(relay, 0, "marker_ahead"), NOW_S)
    repaired = run_command(owner, "repair", "lane", "0", "--yes")
    assert repaired.returncode == 0, repaired.stderr
    assert system.query("SELECT repaired_by, reason FROM repairs") == [
        (logins.login("owner"), "marker_ahead")
    ]
    system.accept(20)
    system.check_exactly_once(20)
    relay.stop()
    assert run_command(owner, "audit").returncode == 0

    every = read_migrations()
    more = Migration(
        every[-1].version + 1, "more.sql", "CREATE TABLE more (); ALTER TABLE outbox ADD x INT"
    )
    monkeypatch.setattr("orchestrator.runtime.migrations.read_migrations", lambda: [*every, more])
    with closing(logins.connect("owner")) as conn:
        assert migrate(conn, 4) == [more]
    assert system.query("SELECT tableowner FROM pg_tables WHERE tablename = 'more'") == [
        (logins.role("owner"),)
    ]


@pytest.mark.fault(42)
def test_a_relay_without_its_permission_on_workers_goes_on_publishing(logins: Logins) -> None:
    system, role = logins.system, logins.role("relay")
    relay = logins.start("relay")
    system.accept(20)
    system.check_exactly_once(20)
    system.query(f"REVOKE UPDATE ON workers FROM {role}")
    system.accept(30)
    eventually(lambda: system.query("SELECT count(*) FROM outbox") == [(0,)])
    assert system.statuses() == {"deployed": 20, "pending": 30}
    reason = "permission denied for table workers (42501)"
    assert system.query("SELECT DISTINCT reason FROM outbox_deferred") == [(reason,)]
    eventually(lambda: relay.logged(f'"reason": "{reason}"'))
    system.query(f"GRANT UPDATE (status, updated_at) ON workers TO {role}")
    system.check_exactly_once(50)


# ---- and nothing else ------------------------------------------------------------------------------


def consume(conn: Connection) -> None:
    """Run every statement of the consumer."""
    check_current(conn)
    topic_id, order = uuid4(), DeployOrder(uuid4(), uuid4(), "rtsp://user:pw@camera/1")
    offsets.insert_position(conn, "topic", 0, topic_id, 0)
    position = offsets.lock_positions(conn, "topic", [0])[0]
    offsets.skip_decided(conn, "topic", topic_id, [0])
    offsets.advance(conn, "topic", topic_id, [OffsetMove(0, position, 1, 5)])
    after = offsets.read_positions(conn, "topic")[0]
    refused = after._replace(refusal=PartitionRefusal.LOG_TRUNCATED, cut_at=1)
    offsets.refuse(conn, "topic", 0, after, refused)
    find_handled(conn, [uuid4()])
    workers.insert(conn, [order])
    workers.find_existing(conn, [order.worker_id])
    workers.insert_ignoring_existing(conn, [order])
    message = Message("topic", b"key", b"value", [("name", b"value")], order.worker_id)
    enqueue(conn, [message], count_lanes(conn))
    check_id_sequence(conn)


def relay(conn: Connection) -> None:
    """Run every statement of the relay."""
    check_current(conn)
    identity = lane_rows.read_identity(conn)
    lanes.set_idle_timeout(conn, PRODUCTION.session_silence_s)
    lanes.join(conn, identity)
    lanes.read_membership(conn, identity)
    outbox_rows.lanes_with_rows(conn, {0: 0})
    lanes.try_lock_lane(conn, identity, 0)
    epoch = lane_rows.take_lane(conn, 0)
    lane_rows.read_lanes(conn, {0: epoch})
    lane_rows.lock_lanes(conn, {0: epoch})
    lane_rows.lock_lanes_skip_locked(conn, {0: epoch})
    outbox_rows.open_writers(conn)
    outbox_rows.claim(conn, [ClaimRequest(0, 10)], 10_000)
    lane_rows.begin_batches(conn, {0: epoch}, {0: LaneRow(0, 1, [1], 0)})
    outbox_rows.load_rows(conn, 0, [1])
    outbox_rows.acknowledge(conn, 0, [1])
    workers.set_deployed(conn, [uuid4()])
    deferred_rows.defer(conn, {uuid4(): "why"})
    due = deferred_rows.find_due(conn, 0.0, 1)
    deferred_rows.lock(conn, due)
    deferred_rows.postpone(conn, due, "why")
    deferred_rows.delete(conn, due)
    deferred_rows.read_deferred_reasons(conn)
    deferred_rows.read_deferred_backlog(conn)
    outbox_rows.park(conn, 0, 1, "why")
    outbox_rows.read_backlog(conn, [0])
    count_parked(conn)
    outbox_rows.park_strays(conn, count_lanes(conn))
    lanes.unlock_lane(conn, identity, 0)
    ids = workers.read_id_sequence(conn)
    if ids is None or ids.allocated is None:
        raise psycopg.errors.InsufficientPrivilege("for a gauge")


STATEMENTS = {"consumer": consume, "relay": relay}

# A privilege on a table counts as one on each of its columns.
PRIVILEGES = """
    SELECT privilege_type, relname, array_agg(attname ORDER BY attnum)
      FROM pg_class
      JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
     CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege_type
     WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
       AND has_column_privilege(%(role)s, pg_class.oid, attnum, privilege_type)
     GROUP BY privilege_type, relname
     UNION ALL
    SELECT privilege_type, relname, NULL
      FROM pg_class
     CROSS JOIN unnest(ARRAY['DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS privilege_type
     WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
       AND has_table_privilege(%(role)s, pg_class.oid, privilege_type)
     UNION ALL
    SELECT privilege_type, 'SEQUENCE ' || relname, NULL
      FROM pg_class
     CROSS JOIN unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS privilege_type
     WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
       AND has_sequence_privilege(%(role)s, pg_class.oid, privilege_type)
"""
Privilege = tuple[str, str, list[str] | None]


def privileges(conn: Connection, role: str) -> list[Privilege]:
    """Return each privilege of a role on a table or sequence: its columns, None for the whole."""
    return cast("list[Privilege]", conn.execute(PRIVILEGES, {"role": role}).fetchall())


def without(privilege: Privilege, role: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what is taken, and the statements that take it: one column at a time."""
    kind, thing, columns = privilege
    revoke = f"REVOKE {kind} ON {thing} FROM {role}"
    for column in columns or [""]:
        others = ", ".join(other for other in columns or [] if other != column)
        grant = [f"GRANT {kind} ({others}) ON {thing} TO {role}"] if others else []
        yield f"{kind} ({column}) ON {thing}", [revoke, *grant]


@pytest.mark.parametrize("process", STATEMENTS)
def test_a_process_needs_each_of_its_privileges(logins: Logins, process: str) -> None:
    role, needless = logins.role(process), []
    with closing(logins.system.connect()) as admin:
        for what, statements in [
            taken for one in privileges(admin, role) for taken in without(one, role)
        ]:
            admin.execute("BEGIN")
            for statement in statements:
                admin.execute(statement.encode())
            admin.execute(f"SET LOCAL ROLE {role}".encode())
            try:
                STATEMENTS[process](admin)
            except psycopg.errors.InsufficientPrivilege:
                pass
            else:
                needless.append(what)
            admin.execute("ROLLBACK")
    assert not needless


NEW = "(worker_id, scenario_uuid, camera_url) VALUES (gen_random_uuid(), gen_random_uuid(), 'rtsp://c')"
REFUSED = {
    "consumer": [
        "DELETE FROM outbox",
        "SELECT value FROM outbox",
        "UPDATE outbox SET value = NULL",
        "SELECT camera_url FROM workers",
        "UPDATE workers SET status = 'deployed'",
        "DELETE FROM workers",
        "UPDATE outbox_lane SET epoch = epoch + 1",
        "SELECT identity FROM outbox_identity",
        "UPDATE consumed_offsets SET topic_id = gen_random_uuid()",
        "DELETE FROM consumed_offsets",
        "SELECT FROM outbox_parked",
    ],
    "relay": [
        f"INSERT INTO workers {NEW}",
        "SELECT camera_url FROM workers",
        "UPDATE workers SET camera_url = ''",
        "DELETE FROM workers",
        "INSERT INTO outbox (lane, topic) VALUES (0, 't')",
        "UPDATE outbox SET value = NULL",
        "INSERT INTO outbox_lane (lane) VALUES (9)",
        "DELETE FROM outbox_lane",
        "UPDATE outbox_identity SET identity = gen_random_uuid()",
        "SELECT value FROM outbox_parked",
        "DELETE FROM outbox_parked",
        "SELECT FROM consumed_offsets",
        "UPDATE consumed_offsets SET next_offset = 0",
    ],
    "operator": [
        f"INSERT INTO workers {NEW}",
        "SELECT camera_url FROM workers",
        "SELECT value FROM outbox",
        "SELECT FROM outbox_lane FOR UPDATE",
        "UPDATE outbox_lane SET batch_number = 0",
        "DELETE FROM outbox_parked",
        "UPDATE consumed_offsets SET next_offset = 0",
    ],
    "owner": [
        "SELECT camera_url FROM workers",
        f"INSERT INTO workers {NEW}",
        "DELETE FROM workers",
        "DROP TABLE workers",
        "CREATE ROLE another",
    ],
}
FOR_NOBODY = [
    "CREATE TABLE mine ()",
    "DROP TABLE outbox",
    "TRUNCATE outbox",
    "ALTER TABLE outbox ADD mine INT",
    "INSERT INTO repairs DEFAULT VALUES",
    "DELETE FROM orchestrator_migrations",
]
EVERY_REFUSED = [
    (role, statement)
    for role, own in REFUSED.items()
    for statement in own + (FOR_NOBODY if role != "owner" else [])
]


def test_a_role_cannot_do_what_it_need_not_do(logins: Logins) -> None:
    allowed = []
    for role in ROLES:
        with closing(logins.connect(role)) as conn:
            for statement in [text for of, text in EVERY_REFUSED if of == role]:
                conn.execute("BEGIN")
                with suppress(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement.encode())
                    allowed.append((role, statement))
                conn.execute("ROLLBACK")
    assert not allowed


def test_the_operator_may_write_nowhere(logins: Logins) -> None:
    with closing(logins.connect("operator")) as conn:
        found = privileges(conn, logins.role("operator"))
        assert {kind for kind, *_ in found} == {"SELECT"}
        assert len(found) > 5
        conn.execute("CREATE TEMP TABLE mine ()")  # which the audit needs


@pytest.mark.parametrize(
    "command",
    [("repair", "lane", "all", "--yes"), ("repair", "partition", "0", "--from", "beginning", "--yes")],
    ids=" ".join,
)
def test_a_repair_is_not_the_operators(logins: Logins, command: Sequence[str]) -> None:
    system = logins.system
    set_marker(system, 7)
    refused = run_command(logins.environ("operator"), *command)
    assert refused.returncode == 1
    assert "permission denied for table" in refused.stderr
    assert system.query("SELECT count(*) FROM repairs") == [(0,)]


# ---- the file itself -------------------------------------------------------------------------------

OWNERS = """
    SELECT relname, relowner::regrole::text
      FROM pg_class
     WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
"""


def state(logins: Logins) -> object:
    """Return who owns what, and every privilege of every role."""
    with closing(logins.system.connect()) as admin:
        every = {role: sorted(privileges(admin, logins.role(role)), key=repr) for role in ROLES}
        return every, dict(logins.system.query(OWNERS))


def test_running_it_again_changes_nothing_and_revokes_other_permissions(logins: Logins) -> None:
    system, before = logins.system, state(logins)
    for role in ("consumer", "relay", "operator"):
        system.query(f"GRANT ALL ON workers, outbox TO {logins.role(role)}")
        system.query(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {logins.role(role)}")
    assert state(logins) != before
    assert logins.make_roles(system.settings.database_url) == ""
    assert state(logins) == before


def test_the_owner_owns_all_but_the_platforms_table(logins: Logins) -> None:
    owners = dict(logins.system.query(OWNERS))
    strangers = {name for name, owner in owners.items() if owner != logins.role("owner")}
    assert strangers == {"workers", "workers_id_seq"}
    assert len(owners) > 8


def test_an_adopted_table_may_take_its_ids_from_elsewhere(logins: Logins) -> None:
    system = logins.system
    system.query("CREATE SEQUENCE the_platforms")
    system.query("ALTER TABLE workers ALTER id SET DEFAULT nextval('the_platforms')")
    with closing(logins.connect("consumer")) as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), transaction(conn):
            consume(conn)
        assert logins.make_roles(system.settings.database_url) == ""
        with transaction(conn):
            consume(conn)


def test_it_changes_all_or_nothing(logins: Logins) -> None:
    system = logins.system
    system.query(f"REVOKE DELETE ON outbox FROM {logins.role('relay')}")
    system.query("ALTER TABLE repairs RENAME TO elsewhere")
    before = state(logins)
    assert 'relation "repairs" does not exist' in logins.make_roles(system.settings.database_url)
    assert state(logins) == before


def test_the_owner_of_the_database_can_run_it_if_it_may_create_roles(system: System) -> None:
    made = Logins(system, uuid4().hex[:12])
    admin, ((database,),) = f"dba_{made.name}", system.query("SELECT current_database()")
    system.query(f"CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD '{admin}'")
    system.query(f"ALTER DATABASE {database} OWNER TO {admin}")
    for (table,) in system.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        system.query(f"ALTER TABLE {table} OWNER TO {admin}")
    url = make_conninfo(system.settings.database_url, user=admin, password=admin)
    try:
        for _ in range(2):
            assert "ERROR" not in made.make_roles(url)
        made.make_logins()
        consumer, relay = made.start("consumer"), made.start("relay")
        system.submit(10)
        system.check_exactly_once(10)
        for process in (consumer, relay):
            process.stop()
    finally:
        system.end()
        system.query(f"ALTER DATABASE {database} OWNER TO CURRENT_USER")
        made.remove()
        system.query(f"DROP OWNED BY {admin} CASCADE")
        system.query(f"DROP ROLE {admin}")


def test_it_is_no_migration() -> None:
    assert FILE.exists()
    assert FILE.name not in {migration.name for migration in read_migrations()}


# ---- Kafka -----------------------------------------------------------------------------------------

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
COMMAND = argparse.ArgumentParser()
COMMAND.add_argument("--allow-principal", required=True)
COMMAND.add_argument("--operation", action="append", required=True)
COMMAND.add_argument("--resource-pattern-type", default="literal")
for kind in ("topic", "group", "transactional-id"):
    COMMAND.add_argument(f"--{kind}", action="append", default=[])


def acls_of_the_docs(system: System) -> dict[str, list[Acl]]:
    """Return what docs/security.md grants to each role, for this installation's names."""
    settings, ((identity,),) = system.settings, system.query("SELECT identity FROM outbox_identity")
    required = {"DATABASE_URL": "dbname=any", "KAFKA_BOOTSTRAP_SERVERS": "any:9092"}
    defaults = read_settings(required)
    names = {
        getattr(defaults, name): getattr(settings, name)
        for name in (
            "input_topic",
            "output_topic",
            "dead_letter_topic",
            "marker_topic",
            "consumer_group",
        )
    }
    found: dict[str, list[Acl]] = {role: [] for role in ROLES}
    for line in SECURITY.read_text().splitlines():
        if line.startswith("$ACL "):
            words = line.replace("$OUTBOX", f"outbox-{identity}").split()[1:]
            read = COMMAND.parse_args([names.get(word, word) for word in words])
            found[read.allow_principal.removeprefix("User:vap-")] += [
                Acl(AclOperation[WORD_END.sub("_", operation).upper()], kind, name, pattern)
                for pattern in [ResourcePatternType[read.resource_pattern_type.upper()]]
                for operation in read.operation
                for kind, given in KINDS.items()
                for name in getattr(read, given)
            ]
    return found


WORD_END = re.compile(r"(?<=[a-z])(?=[A-Z])")  # in DescribeConfigs
KINDS = {
    ResourceType.TOPIC: "topic",
    ResourceType.GROUP: "group",
    ResourceType.TRANSACTIONAL_ID: "transactional_id",
}


@dataclass(frozen=True)
class Users:
    """An installation on a broker that asks for passwords, through TLS, with a user a role."""

    logins: Logins
    kafka: SecuredKafka
    passwords: dict[str, str]

    @property
    def system(self) -> System:
        """Return the installation, to which nothing is forbidden."""
        return self.logins.system

    def environ(self, role: str, **changed: str) -> dict[str, str]:
        """Return the settings of a process that is this role in Postgres and in Kafka."""
        return self.logins.environ(role) | {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.tls,
            "KAFKA_CONFIG_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_CONFIG_SSL_CA_LOCATION": str(self.kafka.keys / "good.pem"),
            "KAFKA_CONFIG_SASL_MECHANISM": SCRAM,
            "KAFKA_CONFIG_SASL_USERNAME": self.logins.login(role),
            "KAFKA_CONFIG_SASL_PASSWORD": self.passwords[role],
            **changed,
        }

    def start(self, process: str, **changed: str) -> Running:
        """Start a process as the role of its name."""
        return self.system.start(process, **self.environ(process, **changed))

    def run(self, role: str, *command: str, code: int = 0) -> str:
        """Run a command as a role; it ends with this exit code, and says no secret."""
        ran = run_command(self.environ(role), *command)
        assert not FOUND.findall(ran.stdout + ran.stderr)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout


@pytest.fixture
def users(secured_broker: SecuredKafka, servers: Servers, tmp_path: Path) -> Iterator[Users]:
    on = Servers(servers.database_url, secured_broker.kafka.bootstrap_servers)
    with installed(on, tmp_path) as system, roles_made(system) as logins:
        passwords = {role: secret() for role in ROLES}
        for role, granted in acls_of_the_docs(system).items():
            secured_broker.set_password(logins.login(role), passwords[role])
            secured_broker.grant(logins.login(role), *granted)
        yield Users(logins, secured_broker, passwords)


def leave_to_setup(system: System) -> None:
    """Delete the topics; recreate the marker topic with too few partitions, and not compacted."""
    *data, markers = topics_of(system)
    delete_topics(system)
    admin, wanted = AdminClient(dict(system.settings.kafka)), NewTopic(markers, 1, 1)
    eventually(lambda: admin.create_topics([wanted])[markers].exception() is None)

    def is_left() -> bool:
        found = admin.list_topics(timeout=10).topics
        created = markers in found and len(found[markers].partitions) == 1
        return created and not found.keys() & set(data)

    eventually(is_left)


def test_each_role_does_its_work_with_the_acls_of_the_docs(users: Users) -> None:
    system = users.system
    leave_to_setup(system)
    users.run("owner", "setup")
    limit_messages(system, 4000)
    set_marker(system, 7)
    consumer, relay = users.start("consumer"), users.start("relay")
    scenarios = system.submit(40)
    system.produce(b"no command", command(5000), key=b"key")
    eventually(lambda: is_refused(relay, 0, "marker_ahead"), NOW_S)
    eventually(lambda: system.query("SELECT count(*) FROM workers") == [(41,)], NOW_S)
    users.run("owner", "repair", "lane", "all", "--yes")
    eventually(lambda: system.statuses() == {"deployed": 40, "pending": 1}, NOW_S)
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 1, NOW_S)

    users.run("operator", "doctor", code=1)  # a parked row and a dead letter wait
    users.run("operator", "status", code=1)
    users.run("operator", "audit")
    assert str(scenarios[0]) in users.run("operator", "explain", str(scenarios[0]))
    assert "not_json" in users.run("operator", "dlq", "list")
    assert "too large" in users.run("operator", "parked", "list")
    assert "rows wait" in users.run("operator", "waiting", "list")
    assert "repair lane all" in users.run("operator", "history")
    users.run("owner", "dlq", "retry", "--all", "--yes")
    eventually(lambda: len(system.read(system.settings.dead_letter_topic)) == 2, NOW_S)
    limit_messages(system, 10_000)
    users.run("owner", "parked", "retry", "--all", "--yes")
    system.check_exactly_once(41)
    system.query(
        "DELETE FROM workers WHERE worker_id = (SELECT min(worker_id::text)::uuid FROM workers)"
    )
    assert re.search("deleted +1 ", users.run("operator", "audit"))
    for process in (consumer, relay):
        process.stop()
        check(process.log.read_text())
        assert not process.logged("authorization failed"), process.log.read_text()


def written(users: Users, role: str, topic: str) -> KafkaError | None:
    """Return why a record of this role was refused, None if it was taken."""
    refusals: list[KafkaError | None] = []
    config = dict(read_settings(users.environ(role)).kafka)
    producer = Producer({**config, "on_delivery": lambda error, _record: refusals.append(error)})
    producer.produce(topic, b"value")
    producer.flush(20)
    return refusals[0]


def test_no_role_writes_to_a_topic_of_another_one(users: Users) -> None:
    settings = users.system.settings
    for role, topic in [
        ("consumer", settings.input_topic),
        ("consumer", settings.output_topic),
        ("consumer", settings.dead_letter_topic),
        ("consumer", settings.marker_topic),
        ("operator", settings.input_topic),
        ("operator", settings.marker_topic),
        ("operator", settings.output_topic),
        ("owner", settings.output_topic),
    ]:
        error = written(users, role, topic)
        assert error is not None, (role, topic)
        assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert written(users, "relay", settings.output_topic) is None


WRONG = {
    "password": ("KAFKA_CONFIG_SASL_PASSWORD", "authentication failed"),
    "user": ("KAFKA_CONFIG_SASL_USERNAME", "authentication failed"),
    "authority": ("KAFKA_CONFIG_SSL_CA_LOCATION", "certificate could not be verified"),
}
SLOW = pytest.mark.slow


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "what", ["password", *(pytest.param(what, marks=SLOW) for what in ("user", "authority"))]
)
def test_wrong_credentials_are_a_clear_error_without_secrets(users: Users, what: str) -> None:
    variable, complaint = WRONG[what]
    wrong = {variable: str(users.kafka.keys / "expired.pem") if what == "authority" else secret()}
    processes = [users.start(process, **wrong) for process in ("consumer", "relay")]
    complained_of(users, complaint, wrong, "setup")
    for process in processes:
        wait_for_complaint(process, complaint)
        said = answers(process)
        process.stop()
        check(said, process.log.read_text())


COMMANDS = ["status", "audit", "repair lane 0 --yes", "submit rtsp://u:{}@c/1"]


@pytest.mark.fault(31)
@pytest.mark.parametrize("words", [COMMANDS[0], *(pytest.param(c, marks=SLOW) for c in COMMANDS[1:])])
def test_a_command_says_that_a_password_is_wrong(users: Users, words: str) -> None:
    variable, complaint = WRONG["password"]
    complained_of(users, complaint, {variable: secret()}, *words.format(secret()).split())


def complained_of(users: Users, complaint: str, wrong: dict[str, str], *words: str) -> None:
    """See that a command says in one line what is wrong, and no secret: status on its screen."""
    ran = run_command(users.environ("owner", **wrong), *words)
    check(ran.stdout + ran.stderr)
    assert ran.returncode == 1, ran.stderr  # the server was reached
    said = ran.stderr.splitlines()[-1:] or [
        line for line in ran.stdout.splitlines() if "UNKNOWN" in line
    ]
    assert complaint in said[0].lower(), said
