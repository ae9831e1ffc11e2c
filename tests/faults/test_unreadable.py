"""A batch that the client cannot decode: its partition waits and is named, the others go on."""

import gzip
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from orchestrator.embedded import EmbeddedKafka, Servers
from orchestrator.kafka import topics
from testkit.disagreement import logged_repairs, repair
from testkit.empty_installation import run_in_process
from testkit.eventually import eventually
from testkit.system import Running, System, set_config
from tests.faults.kafka_servers import own_kafka
from tests.faults.postgres_servers import installed
from tests.integration.test_ingest import crc32c

SOON = json.dumps({"unreadable_retry_s": 1, "unread_s": 2, "position_check_s": 0.5})
RECORDS = 5  # of the batch
WAIT_S = 60
GARBAGE = b"\xff\xfe no records of any kind \xfd" * 9


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedKafka]:
    with own_kafka() as kafka:
        yield kafka


@pytest.fixture
def system(broker: EmbeddedKafka, servers: Servers, tmp_path: Path) -> Iterator[System]:
    on = Servers(servers.database_url, broker.bootstrap_servers)
    with installed(on, tmp_path) as made:
        made.environ["OUTBOX_TIMINGS"] = SOON
        yield made


def command() -> bytes:
    """Return a valid command."""
    url = "rtsp://user:pw@camera/1"
    return msgspec.json.encode({"scenario_uuid": str(uuid4()), "camera_url": url})


def accepted(system: System) -> int:
    """Count the workers."""
    return int(system.query("SELECT count(*) FROM workers")[0][0])


# ---- batches ---------------------------------------------------------------------------------------


def batch(base: int, epoch: int, codec: int, payload: bytes, crc: int | None = None) -> bytes:
    """Return a batch as it stands in a log, whatever its payload is."""
    now = int(time.time() * 1000)
    checked = struct.pack(">hiqqqhii", codec, RECORDS - 1, now, now, -1, -1, -1, RECORDS) + payload
    crc = crc32c(checked) if crc is None else crc
    return struct.pack(">qiibI", base, len(checked) + 9, epoch, 2, crc) + checked


def append(broker: EmbeddedKafka, system: System, codec: int, payload: bytes, crc: int | None) -> None:
    """Append a batch to the log of partition 0, behind what it has, while the broker is down."""
    topic, admin = system.settings.input_topic, AdminClient(dict(system.settings.kafka))
    end = topics.read_high_watermarks(admin, topic, [0])[0]
    epoch = topics.read_leader_epochs(admin, topic, [0])[0]
    broker.stop()
    with (broker.data / f"{topic}-0" / f"{0:020}.log").open("ab") as log:
        log.write(batch(end, epoch, codec, payload, crc))
    broker.start()


DECODE_FAILS: dict[str, tuple[int, bytes, int | None]] = {
    "gzip": (1, GARBAGE, None),
    "snappy": (2, GARBAGE, None),
    "lz4": (3, GARBAGE, None),
    "zstd": (4, GARBAGE, None),
    "codec": (6, GARBAGE, None),
    "crc": (0, GARBAGE, 1),
}
SILENT = {  # the client tries such a batch again and again, and says nothing
    "records": (0, GARBAGE, None),
    "records in gzip": (1, gzip.compress(GARBAGE), None),
}


def check_waits_alone(system: System, consumer: Running, hint: str) -> None:
    """See that partition 0 waits and is named, that the process is ready, and that others flow."""
    eventually(lambda: hint in consumer.get("/readyz"), WAIT_S)
    eventually(lambda: '"ready": true' in consumer.get("/readyz"), WAIT_S)
    before = accepted(system)
    system.produce(command(), command(), partition=1)
    eventually(lambda: accepted(system) == before + 2, WAIT_S)
    assert hint in run_in_process(system.environ, "status").stdout
    assert hint in run_in_process(system.environ, "doctor").stdout
    assert not consumer.logged('"consumer waiting"')


@pytest.mark.xdist_group("own servers: Kafka")
@pytest.mark.fault(71)
@pytest.mark.parametrize(
    "kind",
    ["gzip", *(pytest.param(one, marks=pytest.mark.slow) for one in DECODE_FAILS if one != "gzip")],
)
def test_a_batch_that_cannot_be_decoded_holds_up_its_partition_alone(
    system: System, broker: EmbeddedKafka, kind: str
) -> None:
    system.produce(command(), partition=0)
    append(broker, system, *DECODE_FAILS[kind])
    system.produce(command(), command(), partition=0)
    consumer = system.start("consumer")
    hint = "partition 0: the batch at offset 1 cannot be decoded"
    check_waits_alone(system, consumer, hint)
    assert consumer.logged('"partition unreadable"')
    assert "KAFKA_CONFIG_RECEIVE_MESSAGE_MAX_BYTES" in consumer.get("/readyz")
    assert accepted(system) == 3
    code, said = repair(system, "partition", "0", "--yes")
    assert (code, "the batch at offset 1 cannot be decoded" in said) == (0, True), said
    assert f"up to {RECORDS} records in the log are skipped" in said
    eventually(lambda: accepted(system) == 5, WAIT_S)
    eventually(lambda: hint not in consumer.get("/readyz"), WAIT_S)
    assert [reason for _, _, reason, _ in logged_repairs(system)] == ["manual"]
    consumer.stop()


@pytest.mark.xdist_group("own servers: Kafka")
@pytest.mark.fault(71)
@pytest.mark.slow
@pytest.mark.parametrize("kind", SILENT)
def test_a_batch_of_which_the_client_says_nothing_is_named(
    system: System, broker: EmbeddedKafka, kind: str
) -> None:
    system.produce(command(), partition=0)
    append(broker, system, *SILENT[kind])
    system.produce(command(), partition=0)
    consumer = system.start("consumer")
    check_waits_alone(system, consumer, "partition 0: no record comes from offset 1")
    assert consumer.logged('"partition waiting"')
    code, said = repair(system, "partition", "0", "--from", str(1 + RECORDS), "--yes")
    assert code == 0, said
    eventually(lambda: accepted(system) == 4, WAIT_S)
    consumer.stop()


# ---- a batch that is only too large ----------------------------------------------------------------


def bomb(system: System) -> None:
    """Write a command of 110 MB in a small batch, into partition 0."""
    large = Producer(
        {
            **system.settings.kafka,
            "compression.type": "zstd",
            "message.max.bytes": 200_000_000,
            "queue.buffering.max.kbytes": 300_000,
        }
    )
    large.produce(system.settings.input_topic, bytes(110_000_000), partition=0)
    assert large.flush(60) == 0


@pytest.mark.xdist_group("own servers: Kafka")
@pytest.mark.fault(71)
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_batch_larger_than_the_clients_buffer_holds_up_its_partition_alone(system: System) -> None:
    set_config(system, system.settings.input_topic, "compression.type", "producer")
    system.produce(command(), partition=0)
    bomb(system)
    system.produce(command(), partition=0)
    consumer, relay = system.start("consumer"), system.start("relay")
    check_waits_alone(system, consumer, "partition 0: the batch at offset 1 cannot be decoded")
    second = system.start("consumer")  # a rebalance
    eventually(lambda: second.logged('"partitions assigned"'), WAIT_S)
    check = "partition 0: the batch at offset 1 cannot be decoded"
    eventually(lambda: check in consumer.get("/readyz") + second.get("/readyz"), WAIT_S)
    for process in (consumer, second, relay):
        process.stop()
    before = accepted(system)
    larger = system.start("consumer", KAFKA_CONFIG_RECEIVE_MESSAGE_MAX_BYTES="200000000")
    eventually(lambda: accepted(system) == before + 1, WAIT_S)  # the command behind it
    assert '"unread"' not in larger.get("/readyz")
    larger.stop()
