"""Whatever a command or a log prints is printable: nothing that another program wrote moves a terminal.

Planted in each text that is not ours: escape sequences, line breaks that would forge a line of ours,
and characters that turn or hide what stands beside them.
"""

import re
from collections.abc import Iterator

import psycopg
import pytest
from confluent_kafka import Producer

from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import System

FORGED = "ok          all is well"
EVIL = f"\x1b]0;owned\x07\x1b[2J\x1b[31m\r\n{FORGED}\r\x9b31m\u202e\u2066\u200b\u2028{FORGED}\x08\x7f"
VALUES = {"evil": EVIL, "bytes": EVIL.encode(), "base64": "GwpdMDs="}
PLANT = """
    INSERT INTO outbox_parked (lane, id, topic, key, value, headers, message_id, aggregate_id,
                               created_at, reason)
    SELECT 0, 900, %(evil)s, %(bytes)s, %(bytes)s,
           json_build_array(json_build_array(%(evil)s::text, %(base64)s::text)),
           gen_random_uuid(), gen_random_uuid(), now(), %(evil)s;
    ALTER TABLE outbox DROP CONSTRAINT outbox_topic_name;
    INSERT INTO outbox (lane, topic, key, value) VALUES (1, %(evil)s, 'k', 'v');
    INSERT INTO outbox_deferred (aggregate_id, reason, attempts, deferred_at)
    VALUES (gen_random_uuid(), %(evil)s, 9, now() - interval '1 hour');
    UPDATE outbox_lane
       SET log_refusal = %(evil)s, inflight = ARRAY[1::bigint], batch_number = 1,
           token = gen_random_uuid(), search_start = '{}'
     WHERE lane = 3;
    UPDATE workers SET camera_url = %(evil)s
"""
# What the platform's own trigger says of a command reaches the log, and a header of the dead letter.
TRIGGER = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.camera_url LIKE '%%refused%%' THEN RAISE EXCEPTION USING MESSAGE = {evil}; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER {name} BEFORE INSERT ON workers FOR EACH ROW EXECUTE FUNCTION refuse()
"""
HEADERS = [
    *("dlq-reason", "kafka_dlt-exception-message", "kafka_dlt-original-topic", "dlq-retry-of", EVIL)
]


def faults(text: str) -> Iterator[str]:
    """Yield what a terminal would not show as it is, and a line that is none of ours."""
    yield from (repr(one) for one in set(text) if not (one.isprintable() or one == "\n"))
    yield from re.findall(f"(?m)^{FORGED}", text)


def plant(system: System) -> psycopg.Connection:
    """Write the evil text wherever another program could; return its session, which has that name."""
    trigger = psycopg.sql.SQL(TRIGGER).format(
        evil=psycopg.sql.Literal(EVIL), name=psycopg.sql.Identifier(EVIL.replace("\n", " ")[:40])
    )
    url = system.settings.database_url
    conn = psycopg.connect(url, application_name=EVIL, cursor_factory=psycopg.ClientCursor)
    conn.execute(PLANT, VALUES)
    conn.execute(trigger)
    conn.commit()
    conn.execute("SELECT txid_current()")
    headers: list[tuple[str, str | bytes | None]] = [(name, EVIL.encode()) for name in HEADERS]
    producer = Producer(dict(system.settings.kafka))
    for topic in (system.settings.dead_letter_topic, system.settings.output_topic):
        producer.produce(topic, EVIL.encode(), EVIL.encode(), headers=headers)
    assert producer.flush(20) == 0
    return conn


@pytest.mark.slow
def test_whatever_is_printed_is_printable(system: System) -> None:
    worker = system.accept(1)[0]
    with plant(system):
        processes = [system.start(name, LOG_FORMAT="text") for name in ("consumer", "relay")]
        url = b'{"scenario_uuid": "%s", "camera_url": "rtsp://refused"}'
        system.produce(url % str(worker).encode(), EVIL.encode(), key=EVIL.encode())
        eventually(lambda: processes[0].logged("record refused") and processes[1].logged("row parked"))
        shown = {process.log.name: process.log.read_text() for process in processes}
        for command in (
            *("status", "status --json", "doctor", "doctor --json", "audit", "audit --json"),
            *(f"explain {worker}", f"explain {worker} --json"),
            *("dlq list", "dlq list --json", "dlq show --reason unknown", "dlq retry --all --dry-run"),
            *("dlq show --payload --reason unknown", "dlq discard --all --yes"),
            *("waiting list", "waiting list --json", "history", "history --json"),
            *("parked list", "parked list --json", "parked show 0:900", "parked show 0:900 --payload"),
            *("parked retry --all --yes", "parked discard --all --dry-run", "repair lane all --yes"),
            *("repair lane all --dry-run", "repair partition all --dry-run"),
        ):
            ran = run_in_process(system.environ, *command.split())
            assert "Traceback" not in ran.stderr
            shown[command] = ran.stdout + ran.stderr
    assert {what: found for what, text in shown.items() if (found := [*faults(text)])} == {}
    assert sum("all is well" in text or "SHA-256" in text for text in shown.values()) > 5
