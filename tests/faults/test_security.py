"""Passwords, permissions and certificates that stop working: clear errors, no secrets, retried."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from psycopg.conninfo import make_conninfo

from orchestrator.embedded import EmbeddedPostgres, Servers
from testkit.cases import cases
from testkit.eventually import eventually
from testkit.private_servers import BACK_S, answer, wait_ready
from testkit.system import Running, System, end_sessions
from tests.acceptance.test_secrets import answers, check, secret
from tests.faults.kafka_servers import stream
from tests.faults.postgres_servers import installed, run
from tests.faults.secured_kafka import SCRAM, Acl, SecuredKafka
from tests.faults.test_output_topics import HELD_S, longest_wait, put, waiting

USER = "vap"


@dataclass
class Secured:
    """An installation whose processes must log in to Kafka."""

    system: System
    kafka: SecuredKafka
    password: str = field(default_factory=secret)
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kafka.set_password(USER, self.password)
        self.kafka.grant(USER, *acls(self.system).values())
        self.environ = {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.sasl,
            "KAFKA_CONFIG_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_CONFIG_SASL_MECHANISM": SCRAM,
            "KAFKA_CONFIG_SASL_USERNAME": USER,
            "KAFKA_CONFIG_SASL_PASSWORD": self.password,
        }

    def use_tls(self, trusted: str) -> None:
        """Let the processes come through TLS and trust these certificates."""
        authorities = self.kafka.keys / "trusted.pem"
        authorities.write_text(trusted)
        self.environ |= {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.tls,
            "KAFKA_CONFIG_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_CONFIG_SSL_CA_LOCATION": str(authorities),
        }

    def start(self) -> dict[str, Running]:
        """Start both processes."""
        return {name: self.system.start(name, **self.environ) for name in ("consumer", "relay")}


READ, WRITE = AclOperation.READ, AclOperation.WRITE
DESCRIBE_CONFIGS = AclOperation.DESCRIBE_CONFIGS
TOPIC, GROUP = ResourceType.TOPIC, ResourceType.GROUP


def acls(system: System) -> dict[str, Acl]:
    """Return all that the README says the processes need."""
    settings = system.settings
    ((identity,),) = system.query("SELECT identity FROM outbox_identity")
    ids = f"outbox-{identity}-"
    return {
        "Read input": Acl(READ, TOPIC, settings.input_topic),
        "Read group": Acl(READ, GROUP, settings.consumer_group),
        "Write output": Acl(WRITE, TOPIC, settings.output_topic),
        "Write dead letters": Acl(WRITE, TOPIC, settings.dead_letter_topic),
        "Read output": Acl(READ, TOPIC, settings.output_topic),
        "Read dead letters": Acl(READ, TOPIC, settings.dead_letter_topic),
        "Describe output": Acl(DESCRIBE_CONFIGS, TOPIC, settings.output_topic),
        "Describe dead letters": Acl(DESCRIBE_CONFIGS, TOPIC, settings.dead_letter_topic),
        "Describe marker topic": Acl(DESCRIBE_CONFIGS, TOPIC, settings.marker_topic),
        "Read marker topic": Acl(READ, TOPIC, settings.marker_topic),
        "Write marker topic": Acl(WRITE, TOPIC, settings.marker_topic),
        "Write ids": Acl(WRITE, ResourceType.TRANSACTIONAL_ID, ids, ResourcePatternType.PREFIXED),
    }


@pytest.fixture
def own(secured_broker: SecuredKafka, servers: Servers, tmp_path: Path) -> Iterator[Secured]:
    on = Servers(servers.database_url, secured_broker.kafka.bootstrap_servers)
    with installed(on, tmp_path) as system:
        yield Secured(system, secured_broker)


def wait_for_complaint(process: Running, text: str) -> None:
    """Wait until a process is alive, unready, and says why, on /readyz and in its log."""
    eventually(lambda: answer(process, "readyz") == 503, BACK_S)
    eventually(lambda: text.lower() in process.get("/readyz").lower(), BACK_S)
    assert answer(process, "livez") == 200
    eventually(lambda: text.lower() in process.log.read_text().lower(), BACK_S)


def check_end(processes: dict[str, Running]) -> None:
    """See that all work, stop them, and look for secrets in all that they said."""
    wait_ready(*processes.values())
    said = [answers(process) for process in processes.values()]
    for process in processes.values():
        process.stop()
    check(*said, *(process.log.read_text() for process in processes.values()))


# ---- Kafka ----------------------------------------------------------------------------------------

REFUSED = "authentication failed"
UNVERIFIED = "certificate could not be verified"


@pytest.mark.fault(31)
@pytest.mark.slow
def test_a_kafka_password_changed_at_work_is_reported_and_retried(own: Secured) -> None:
    processes = own.start()
    with stream(own.system, rate=50) as commands:
        commands.wait_for_progress()
        own.kafka.set_password(USER, "another")
        wait_for_complaint(processes["relay"], REFUSED)
        wait_for_complaint(processes["consumer"], REFUSED)
        own.kafka.set_password(USER, own.password)
        commands.wait_for_progress()
    commands.check()
    check_end(processes)


WHO = {
    "Read input": ("consumer", "Topic authorization failed"),
    "Read group": ("consumer", "Group authorization failed"),
    "Write output": ("relay", "Topic authorization failed"),
    "Write dead letters": ("relay", "Topic authorization failed"),
    "Write marker topic": ("relay", "Topic authorization failed"),
    "Write ids": ("relay", "Transactional Id authorization failed"),
}
QUICK = {"Read input", "Write output"}


@pytest.mark.fault(31)
@pytest.mark.parametrize("acl", cases([*WHO], *QUICK))
def test_a_permission_revoked_at_work_is_named_and_retried(own: Secured, acl: str) -> None:
    processes, taken = own.start(), acls(own.system)[acl]
    name, complaint = WHO[acl]
    with stream(own.system, rate=50) as commands:
        commands.wait_for_progress()
        own.kafka.revoke(USER, taken)
        wait_for_complaint(processes[name], complaint)
        own.kafka.grant(USER, taken)
        commands.wait_for_progress()
    commands.check()
    assert own.system.query("SELECT count(*) FROM outbox_parked") == [(0,)]
    check_end(processes)


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    "hidden", cases({"may not write": False, "may not describe": True}, "may not write")
)
def test_a_forbidden_output_topic_holds_up_its_own_rows_alone(own: Secured, hidden: bool) -> None:
    own.system.environ["RELAY_TOPICS"] = forbidden = f"forbidden-{uuid4()}"
    own.kafka.admin.create_topics([NewTopic(forbidden, 1, 1)])[forbidden].result(10)
    if not hidden:
        own.kafka.grant(USER, Acl(READ, TOPIC, forbidden))  # implies Describe
    relay = own.start()["relay"]
    wait_ready(relay)
    put(own.system, 1, forbidden, b"late")
    assert longest_wait(own.system, (0, 1, 2, 3), 6) < HELD_S
    eventually(lambda: f"Write on topic {forbidden}" in relay.get("/readyz"))
    assert relay.logged(f"Write on topic {forbidden}")
    assert not relay.logged("lane in doubt")
    own.kafka.grant(USER, Acl(WRITE, TOPIC, forbidden))
    eventually(lambda: waiting(own.system) == 0, 15)


@pytest.mark.fault(31)
def test_a_broker_whose_certificate_has_expired_is_retried(own: Secured) -> None:
    both = [(own.kafka.keys / f"{name}.pem").read_text() for name in ("good", "expired")]
    own.use_tls("".join(both))
    own.kafka.show_certificate("expired")
    processes = own.start()
    own.system.submit(20)
    wait_for_complaint(processes["relay"], UNVERIFIED)
    wait_for_complaint(processes["consumer"], UNVERIFIED)
    own.kafka.show_certificate("good")
    own.system.check_exactly_once(20)
    check_end(processes)


@pytest.mark.fault(31)
@pytest.mark.slow
def test_a_broker_without_a_trusted_certificate_is_sent_nothing(own: Secured) -> None:
    own.use_tls((own.kafka.keys / "expired.pem").read_text())
    processes = own.start()
    own.system.submit(20)
    wait_for_complaint(processes["relay"], UNVERIFIED)
    wait_for_complaint(processes["consumer"], UNVERIFIED)
    for process in processes.values():
        process.stop()
    check(*(process.log.read_text() for process in processes.values()))
    own.use_tls((own.kafka.keys / "good.pem").read_text())  # it is read at the start only
    processes = own.start()
    own.system.check_exactly_once(20)
    check_end(processes)


# ---- Postgres -------------------------------------------------------------------------------------


@pytest.fixture
def guarded(
    postgres: EmbeddedPostgres, servers: Servers, tmp_path: Path
) -> Iterator[tuple[System, dict[str, str], str]]:
    """An installation whose processes log in to Postgres as `vap`; its environment; the password."""
    password = secret()
    with installed(Servers(postgres.url, servers.bootstrap_servers), tmp_path) as system:
        run(postgres, f"CREATE ROLE {USER} LOGIN PASSWORD '{password}'")
        for objects in ("TABLES", "SEQUENCES"):
            system.query(f"GRANT ALL ON ALL {objects} IN SCHEMA public TO {USER}")
        url = make_conninfo(system.environ["DATABASE_URL"], user=USER, password=password)
        yield system, {"DATABASE_URL": url}, password
    run(postgres, f"DROP ROLE {USER}")


REVOKED = {
    "password": (
        f"ALTER ROLE {USER} PASSWORD 'another'",
        f"ALTER ROLE {USER} PASSWORD '{{password}}'",
        {"consumer": "password authentication failed", "relay": "password authentication failed"},
    ),
    "login": (
        f"ALTER ROLE {USER} NOLOGIN",
        f"ALTER ROLE {USER} LOGIN",
        {"consumer": "is not permitted to log in", "relay": "is not permitted to log in"},
    ),
    "workers": (
        f"REVOKE INSERT, UPDATE ON workers FROM {USER}",
        f"GRANT INSERT, UPDATE ON workers TO {USER}",
        {"consumer": "permission denied for table workers"},
    ),
    "lanes": (
        f"REVOKE UPDATE ON outbox_lane FROM {USER}",
        f"GRANT UPDATE ON outbox_lane TO {USER}",
        {"relay": "permission denied for table outbox_lane"},
    ),
}


@pytest.mark.fault(31)
@pytest.mark.parametrize("what", cases(REVOKED.keys(), "workers"))
def test_a_permission_revoked_in_postgres_is_named_and_retried(
    guarded: tuple[System, dict[str, str], str], what: str
) -> None:
    system, environ, password = guarded
    revoke, restore, complaints = REVOKED[what]
    processes = {name: system.start(name, **environ) for name in ("consumer", "relay")}
    with stream(system, rate=50) as commands:
        commands.wait_for_progress()
        system.query(revoke)
        if what in {"password", "login"}:  # which open sessions never notice
            end_sessions(system, "o%")
        for name, complaint in complaints.items():
            wait_for_complaint(processes[name], complaint)
        system.query(restore.format(password=password))
        commands.wait_for_progress()
    commands.check()
    check_end(processes)
