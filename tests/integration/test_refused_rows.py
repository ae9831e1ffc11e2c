"""A command whose row Postgres refuses becomes a dead letter, and holds up no other one."""

import secrets
from contextlib import closing
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from orchestrator.consumer import narrowing
from orchestrator.consumer.narrowing import EveryRowRefused, RowOrSchema
from outbox import DatabaseNotReady, RowsSkipped
from testkit.cases import cases
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.system import System, own_headers, take
from tests.integration.test_ingest import produce_raw

KEY = b"one partition"
PASSWORD = "the_password_of_a_camera"
REASON = "refused_by_database"

# Each refuses the URLs that contain `bad`, and no other.
TRIGGER = """
    CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.camera_url LIKE '%bad%' THEN {refuses}; END IF;
        RETURN NEW;
    END $$;
    CREATE {kind} TRIGGER judge {when} INSERT ON workers {deferred}
           FOR EACH ROW EXECUTE FUNCTION judge()
"""
CHECKED = "ALTER TABLE workers ADD CONSTRAINT no_bad CHECK (camera_url NOT LIKE '%bad%')"


def trigger(refuses: str, when: str = "BEFORE", deferred: str = "") -> str:
    kind = "CONSTRAINT" if deferred else ""
    return TRIGGER.format(refuses=refuses, when=when, kind=kind, deferred=deferred)


RAISES = "RAISE EXCEPTION 'not %', NEW.camera_url"
DEFERRED = "DEFERRABLE INITIALLY DEFERRED"
A_BAD_ONE = """
    INSERT INTO workers (worker_id, scenario_uuid, camera_url, status)
    VALUES (gen_random_uuid(), gen_random_uuid(), 'bad', 'stopped')
"""
DOMAIN = """
    CREATE DOMAIN url AS text CONSTRAINT no_bad CHECK (VALUE NOT LIKE '%bad%');
    ALTER TABLE workers ALTER camera_url TYPE url
"""
EXCLUSION = """
    CREATE FUNCTION is_bad(text) RETURNS text IMMUTABLE LANGUAGE sql
        AS $$ SELECT CASE WHEN $1 LIKE '%bad%' THEN 'bad' END $$;
    ALTER TABLE workers ADD CONSTRAINT one_bad EXCLUDE USING hash (is_bad(camera_url) WITH =);
"""
QUICK = ("a length", "a CHECK", "an index row", "a trigger that fails", "a trigger that skips")
REFUSALS = {
    "a length": (
        "ALTER TABLE workers ALTER camera_url TYPE varchar(60)",
        "(22001): table workers, column camera_url (character varying(60))",
    ),
    "a CHECK": (CHECKED, "(23514): table workers, constraint no_bad"),
    "a domain": (
        DOMAIN,
        "(23514): table workers, constraint no_bad",
    ),
    "an exclusion": (
        EXCLUSION + A_BAD_ONE,
        "(23P01): table workers, constraint one_bad",
    ),
    "a unique index of the platform": (
        "CREATE UNIQUE INDEX one_bad ON workers ((true)) WHERE camera_url LIKE '%bad%';" + A_BAD_ONE,
        "(23505): table workers, constraint one_bad",
    ),
    "an index row": ("CREATE INDEX by_url ON workers (camera_url)", "(54000): table workers"),
    "a trigger that raises": (trigger(RAISES), "(P0001): table workers, triggers judge"),
    "a trigger with a code of its own": (
        trigger(RAISES + " USING ERRCODE = 'VAP01'"),
        "(VAP01): table workers, triggers judge",
    ),
    "a trigger that fails": (trigger("PERFORM 1 / 0"), "(22012): table workers, triggers judge"),
    "a trigger that claims to be a constraint": (
        trigger(RAISES + " USING ERRCODE = '23514', CONSTRAINT = NEW.camera_url"),
        "(23514): table workers, constraint rtsp",
    ),
    "a trigger that calls what is not there": (
        trigger("PERFORM nowhere()"),
        "(42883): table workers, triggers judge",
    ),
    "a trigger that reads what is not there": (
        trigger("PERFORM 1 FROM nowhere.nothing"),
        "(42P01): table workers, triggers judge",
    ),
    "a trigger that denies": (
        trigger(RAISES + " USING ERRCODE = 'insufficient_privilege'"),
        "(42501): table workers, triggers judge",
    ),
    "a trigger that has no value yet": (
        "CREATE SEQUENCE unused;" + trigger("PERFORM currval('unused')"),
        "(55000): table workers, triggers judge",
    ),
    "a trigger that skips": (trigger("RETURN NULL"), "triggers judge"),
    "a trigger that changes worker_id": (
        trigger("NEW.worker_id = gen_random_uuid()"),
        "changes its worker_id: table workers, triggers judge",
    ),
    "a trigger afterwards": (trigger(RAISES, "AFTER"), "(P0001): table workers, triggers judge"),
    "a deferred trigger": (
        trigger(RAISES, "AFTER", DEFERRED),
        "(P0001): table workers, triggers judge",
    ),
}


def change(system: System, ddl: str) -> None:
    """Change the schema, by several statements perhaps."""
    with closing(psycopg.connect(system.settings.database_url, autocommit=True)) as conn:
        conn.execute(ddl.encode())


def send(system: System, *, bad: bool = False, scenario: UUID | None = None) -> None:
    """Write a command; a bad one has a URL that is longer than an index takes."""
    system.produce(command("bad" + secrets.token_hex(4000) if bad else "", scenario), key=KEY)


def command(stream: str, scenario: UUID | None = None) -> bytes:
    """Return a valid command."""
    url = f"rtsp://u:{PASSWORD}@camera/{stream}"
    return msgspec.json.encode({"scenario_uuid": str(scenario or uuid4()), "camera_url": url})


def carry(system: System, records: int) -> None:
    """Move consumer and lane until everything has gone through."""
    with system.consumer() as session, system.lane() as lane:
        take(session, records)
        lane.recover()
        assert lane.drain() == records


def letters(system: System) -> list[dict[str, bytes]]:
    """Return the headers of the dead letters."""
    return [
        {name: value or b"" for name, value in own_headers(record)}
        for record in system.read(system.settings.dead_letter_topic)
    ]


@pytest.mark.fault(80)
@pytest.mark.parametrize(("ddl", "named"), cases(REFUSALS, *QUICK))
def test_a_refused_row_becomes_a_dead_letter_and_its_neighbours_workers(
    one_lane: System, ddl: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    change(one_lane, ddl)
    for is_bad in (False, False, True, False, True, False):
        send(one_lane, bad=is_bad)
    carry(one_lane, 6)
    assert one_lane.statuses()["deployed"] == 4
    found = letters(one_lane)
    assert [letter["dlq-reason"] for letter in found] == [REASON.encode()] * 2
    for letter in found:
        assert named in letter["kafka_dlt-exception-message"].decode()
        assert PASSWORD not in str(letter)
    refused = [record for record in caplog.records if record.message == "record refused"]
    assert [(vars(one)["partition"], vars(one)["offset"]) for one in refused] == [
        (refused[0].partition, 2),  # type: ignore[attr-defined]
        (refused[0].partition, 4),  # type: ignore[attr-defined]
    ]
    assert all(named in vars(one)["error"] for one in refused)
    assert PASSWORD not in caplog.text
    one_lane.query("DELETE FROM workers WHERE status = 'stopped'")
    assert one_lane.audit().passed


@pytest.mark.fault(80)
@pytest.mark.parametrize("alone", [True, False], ids=["a record alone", "every record"])
def test_an_error_of_the_schema_makes_no_dead_letter_until_another_row_is_taken(
    one_lane: System, alone: bool
) -> None:
    """Only another record can show whether the schema is wrong or the record."""
    fails = "PERFORM nowhere(NEW.camera_url)"
    change(one_lane, trigger(fails) if alone else trigger(fails).replace("%bad%", "%"))
    send(one_lane, bad=True)
    if not alone:
        send(one_lane)
    with one_lane.consumer() as session, pytest.raises(RowOrSchema) as raised:
        take(session, 1)
    text = str(raised.value)
    assert text.startswith("partition ")
    assert ", offset 0: function nowhere(text) does not exist (42883): mend the table" in text
    assert PASSWORD not in text
    if not alone:
        change(one_lane, "DROP FUNCTION judge CASCADE")
    send(one_lane)
    with one_lane.consumer() as session:
        take(session, 2 if alone else 3)
    assert one_lane.statuses() == {"pending": 1 if alone else 3}
    assert one_lane.query("SELECT count(*) FROM outbox WHERE aggregate_id IS NULL") == [(int(alone),)]


@pytest.mark.fault(80)
def test_a_scenario_that_the_platform_does_not_know_is_refused(one_lane: System) -> None:
    known = uuid4()
    change(one_lane, "CREATE TABLE scenarios (id uuid PRIMARY KEY)")
    one_lane.query("INSERT INTO scenarios VALUES (%s)", known)
    change(one_lane, "ALTER TABLE workers ADD FOREIGN KEY (scenario_uuid) REFERENCES scenarios")
    for scenario in (known, uuid4(), known):
        send(one_lane, scenario=scenario)
    carry(one_lane, 3)
    assert one_lane.statuses() == {"deployed": 2}
    (letter,) = letters(one_lane)
    text = letter["kafka_dlt-exception-message"].decode()
    assert text == (
        "Postgres refuses the row (23503): table workers, constraint workers_scenario_uuid_fkey"
    )


@pytest.mark.fault(80)
@pytest.mark.parametrize("deferrable", ["", "DEFERRABLE INITIALLY DEFERRED"])
def test_the_second_worker_of_a_pair_that_must_be_unique_is_refused(
    one_lane: System, deferrable: str
) -> None:
    change(one_lane, f"ALTER TABLE workers ADD UNIQUE (scenario_uuid, camera_url) {deferrable}")
    scenario = uuid4()
    for one in (scenario, uuid4(), scenario):
        send(one_lane, scenario=one)
    carry(one_lane, 3)
    assert one_lane.statuses() == {"deployed": 2}
    (letter,) = letters(one_lane)
    assert "(23505): table workers, constraint workers_scenario" in str(letter)


@pytest.mark.fault(80)
def test_a_large_batch_is_narrowed_with_few_failures(one_lane: System) -> None:
    change(one_lane, trigger("PERFORM nextval('failures'); RAISE EXCEPTION 'bad'"))
    change(one_lane, "CREATE SEQUENCE failures")
    with one_lane.consumer() as session:
        one_lane.submit(700)
        send(one_lane, bad=True)
        one_lane.submit(299)
        take(session, 1000)
    assert one_lane.statuses() == {"pending": 999}
    (failures,) = one_lane.query("SELECT last_value FROM failures")[0]
    assert failures <= 5


@pytest.mark.fault(80)
def test_a_retry_is_accepted_once_the_column_is_wide_enough(one_lane: System) -> None:
    change(one_lane, "ALTER TABLE workers ALTER camera_url TYPE varchar(60)")
    send(one_lane, bad=True)
    send(one_lane)
    carry(one_lane, 2)

    def retry() -> None:
        done = run_command(one_lane.environ, "dlq", "retry", "--reason", REASON, "--yes")
        assert done.returncode == 0, done.stderr
        with one_lane.lane() as lane:
            lane.recover()
            assert lane.drain() == 1
        carry(one_lane, 1)

    retry()  # too early: refused again
    assert len(letters(one_lane)) == 2
    change(one_lane, "ALTER TABLE workers ALTER camera_url TYPE text")
    retry()
    assert one_lane.statuses() == {"deployed": 2}
    assert len(one_lane.orders()) == 2
    assert one_lane.audit().passed


@pytest.mark.fault(80)
def test_a_refused_record_with_headers_that_cannot_be_read_is_a_dead_letter(one_lane: System) -> None:
    change(one_lane, CHECKED)
    produce_raw(one_lane, command("bad"), b"\xff\xfe not UTF-8")
    send(one_lane)
    carry(one_lane, 2)
    assert one_lane.statuses() == {"deployed": 1}
    assert [letter["dlq-reason"] for letter in letters(one_lane)] == [REASON.encode()]


@pytest.mark.fault(80)
def test_a_refused_command_is_explained(one_lane: System) -> None:
    change(one_lane, CHECKED)
    scenario = uuid4()
    send(one_lane, bad=True, scenario=scenario)
    carry(one_lane, 1)
    said = run_command(one_lane.environ, "explain", str(scenario))
    assert f"reason {REASON}; it was {one_lane.settings.input_topic}:" in said.stdout


# ---- a table that takes no row ------------------------------------------------------------------

MANY_WORKERS = """
    INSERT INTO workers (worker_id, scenario_uuid, camera_url, status)
    SELECT gen_random_uuid(), gen_random_uuid(), 'x', 'stopped' FROM generate_series(1, 5000);
"""
MANY_ROWS = "INSERT INTO outbox (lane, topic) SELECT 0, 'x' FROM generate_series(1, 5000);"
SETVAL = "SELECT setval('workers_id_seq', (SELECT max(id) FROM workers))"
TABLE_FAULTS = {
    "a column that must be filled": (
        "ALTER TABLE workers ADD tenant text NOT NULL",
        "ALTER TABLE workers ALTER tenant SET DEFAULT 'x'",
        "public.workers.tenant is NOT NULL without a default",
    ),
    "a sequence set back": (
        MANY_WORKERS + "SELECT setval('workers_id_seq', 1)",
        SETVAL,
        SETVAL,
    ),
    "ids used up": (
        "SELECT setval('workers_id_seq', 2147483647)",
        "SELECT setval('workers_id_seq', 1)",
        "no id is left for table workers, column id (integer)",
    ),
    "the outbox's sequence set back": (
        MANY_ROWS + "SELECT setval('outbox_id_seq', 1)",
        "DELETE FROM outbox; SELECT setval('outbox_id_seq', 5000)",
        "SELECT setval('public.outbox_id_seq', 5000)",
    ),
}


@pytest.mark.fault(80, 83)
@pytest.mark.parametrize(("ddl", "remedy", "named"), TABLE_FAULTS.values(), ids=TABLE_FAULTS)
def test_a_table_that_takes_no_row_makes_no_dead_letter(
    one_lane: System, ddl: str, remedy: str, named: str
) -> None:
    with one_lane.consumer() as session:
        change(one_lane, ddl)
        one_lane.submit(3)
        with pytest.raises(DatabaseNotReady) as error:
            take(session, 3)
    assert named in str(error.value)
    change(one_lane, remedy)
    with one_lane.consumer() as session:
        take(session, 3)
    assert one_lane.statuses()["pending"] == 3
    dead = "SELECT count(*) FROM outbox WHERE topic = %s"
    assert one_lane.query(dead, one_lane.settings.dead_letter_topic) == [(0,)]


@pytest.mark.fault(80)
def test_a_mistake_in_the_schema_costs_few_dead_letters(one_lane: System) -> None:
    change(one_lane, "ALTER TABLE workers ADD CONSTRAINT mistake CHECK (status = 'new') NOT VALID")
    one_lane.submit(50, uuid4())
    with one_lane.consumer() as session, pytest.raises(EveryRowRefused) as error:
        take(session, 50)
    assert "constraint mistake; change the table" in str(error.value)
    assert f"`orchestrator dlq retry --reason {REASON}`" in str(error.value)
    dead = "SELECT count(*) FROM outbox WHERE topic = %s"
    topic = one_lane.settings.dead_letter_topic
    assert one_lane.query(dead, topic) == [(narrowing.LIMIT,)]
    change(one_lane, "ALTER TABLE workers DROP CONSTRAINT mistake")
    with one_lane.consumer() as session:
        take(session, 50 - narrowing.LIMIT)
    assert one_lane.statuses() == {"pending": 50 - narrowing.LIMIT}


@pytest.mark.fault(80)
def test_many_refused_commands_in_a_row_do_not_stop_the_good_ones_behind(
    one_lane: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.consumer.batch_writer.SAMPLE", 1000)
    change(one_lane, CHECKED)
    with one_lane.consumer() as session:
        for _ in range(narrowing.LIMIT * 2 + 5):
            send(one_lane, bad=True)
        send(one_lane)
        take(session, narrowing.LIMIT * 2 + 6)
    assert one_lane.statuses() == {"pending": 1}


# ---- rows that are left out without an error ----------------------------------------------------

SKIPS = """
    CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER skip BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION skip()
"""


@pytest.mark.fault(82)
@pytest.mark.parametrize(
    ("ddl", "table"),
    [
        (SKIPS.format(event="INSERT", table="outbox"), "INSERT of table outbox"),
        ("CREATE RULE skip AS ON INSERT TO outbox DO INSTEAD NOTHING", "INSERT of table outbox"),
        (SKIPS.format(event="UPDATE", table="consumed_offsets"), "UPDATE of table consumed_offsets"),
    ],
    ids=["outbox", "outbox, by a rule", "consumed_offsets"],
)
def test_a_table_of_ours_that_skips_rows_is_named(one_lane: System, ddl: str, table: str) -> None:
    with one_lane.consumer() as session:
        one_lane.submit(3)
        change(one_lane, ddl)
        with pytest.raises(RowsSkipped, match=table):
            take(session, 3)
    assert one_lane.statuses() == {}
    assert one_lane.query("SELECT count(*) FROM outbox") == [(0,)]


@pytest.mark.fault(82)
def test_a_partition_without_a_position_is_named(one_lane: System) -> None:
    change(one_lane, SKIPS.format(event="INSERT", table="consumed_offsets"))
    with one_lane.consumer() as session, pytest.raises(RowsSkipped, match="INSERT of table consumed"):
        eventually(lambda: session.run_once() > 0)


@pytest.mark.fault(82)
def test_rows_that_are_not_deleted_are_not_published_again(one_lane: System) -> None:
    one_lane.accept(3)
    change(one_lane, SKIPS.format(event="DELETE", table="outbox"))
    with one_lane.lane() as lane:
        lane.recover()
        assert lane.run_once() == 3
        with pytest.raises(RowsSkipped, match="DELETE of table outbox left out 3 rows"):
            lane.run_once()
    change(one_lane, "DROP TRIGGER skip ON outbox")
    with one_lane.lane() as lane:
        lane.recover()
        lane.drain()
    one_lane.check_exactly_once(3)
