"""Chaos: every fault at once, at random, while a reader checks each record as it arrives.

    python -m tests.chaos                     100,000 scenarios, 200 SIGKILLs, a new seed
    python -m tests.chaos --seed 7            the same choices again (the machine's timing is its own)
    python -m tests.chaos --scenarios 5000 --kills 20

Two consumers and three relays are killed, frozen, stopped, cut off at a message; the broker and
Postgres are killed, frozen and restarted; the input's log is cut, and repaired. When the faults end,
everything must be deployed and read, which may take as long as it moves. Exit code 1, and a report in
build/, if a record was lost, doubled or out of order; if commands or rows still wait and nothing moves;
or if the reader stands still.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from secrets import randbelow
from threading import Event, Thread
from typing import NamedTuple
from uuid import UUID

import msgspec
import psycopg
from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as Record

from orchestrator.cli.demo import count_swapped
from orchestrator.contract.messages import Command, DeployOrder
from orchestrator.embedded.server import HOST
from orchestrator.kafka.reader import LastingReader, find_ranges
from orchestrator.kafka.topics import Admin
from testkit.empty_installation import run_command
from testkit.eventually import eventually
from testkit.private_servers import Work, own_servers, pause, wake
from testkit.proxied import postgres_proxied
from testkit.proxy import Rule, cut_after, cut_before, delay, proxy
from testkit.system import Running, System, end_sessions
from testkit.wire_protocol import KafkaConversation

REPORTS = Path("build")
PROCESSES = 5  # two consumers, three relays
KEYS = 200
BAD_EVERY = 97  # a record that is no command, after so many that are
SECONDS_A_KILL = 1.0  # how long the commands are spread over
PAUSE_S = (0.05, 0.5)  # between two faults
FROZEN_S = (0.5, 2, 8, 12)  # shorter and longer than the time-outs of group, session, transaction
SERVERS_EVERY_S = (12, 25)  # a fault of a whole server
CUT_COMMANDS = 500  # that are sent before the log is cut, at least
STILL_S = 60  # without any progress: longer than the time-outs after which the processes go on
SAY_S = 10
FETCHING = (
    *("fetch_state", "leader", "broker", "leader_epoch", "next_offset", "app_offset"),
    *("ls_offset", "hi_offset", "fetchq_cnt"),
)


class StandsStill(Exception):
    """Something did not reach its goal, and has stopped moving."""


class Violation(NamedTuple):
    """What the reader saw that must not be. at: Unix s."""

    at: float
    what: str
    place: str
    order: str


@dataclass
class Watcher:
    """A read_committed reader that knows which number of each key comes next.

    stats: librdkafka's last statistics.
    """

    read: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # that the client reported, by name
    stats: str = "{}"
    violations: list[Violation] = field(default_factory=list)
    _next: dict[UUID, int] = field(default_factory=dict)
    _seen: set[UUID] = field(default_factory=set)

    def note_stats(self, stats: str) -> None:
        """Keep librdkafka's last statistics."""
        self.stats = stats

    def take(self, record: Record) -> None:
        """Take what a poll returned: a record, or an error that the client goes on after."""
        if (error := record.error()) is None:
            self.check(record)
        elif error.code() != KafkaError._PARTITION_EOF:
            self.errors[error.name()] += 1

    def where(self) -> dict[str, dict[str, object]]:
        """Return where each partition's fetching is, from the last statistics."""
        topics = json.loads(self.stats).get("topics", {}).values()
        return {
            number: {name: partition[name] for name in FETCHING if name in partition}
            for topic in topics
            for number, partition in topic["partitions"].items()
            if partition.get("desired")
        }

    def check(self, record: Record) -> None:
        """Take one record: a key's commands carry the numbers k, k + KEYS, k + 2 KEYS..."""
        order = msgspec.json.decode(record.value() or b"", type=DeployOrder)
        number = int(order.camera_url.rpartition("/")[2])
        expected = self._next.get(order.scenario_uuid, number % KEYS)
        if order.worker_id in self._seen:
            self._note("duplicated", record, order, number)
        elif number != expected:
            self._note("reordered or lost", record, order, number)
        self._seen.add(order.worker_id)
        self._next[order.scenario_uuid] = max(number + KEYS, expected)
        self.read += 1

    def _note(self, what: str, record: Record, order: DeployOrder, number: int) -> None:
        place = f"{record.topic()}[{record.partition()}]@{record.offset()}"
        known = f"number {number}, worker {order.worker_id}, key {order.scenario_uuid}"
        self.violations.append(Violation(time.time(), what, place, known))


@dataclass
class Chaos:
    """One run: the servers, the processes, what was done to them, and what came of it."""

    random: Random
    scenarios: int
    kills: int
    work: Work
    watcher: Watcher = field(default_factory=Watcher)
    history: list[tuple[float, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    _processes: list[Running] = field(default_factory=list)
    _frozen: list[tuple[float, Running]] = field(default_factory=list)
    _rules: list[Rule] = field(default_factory=list)  # of both proxies
    _through: dict[str, str] = field(default_factory=dict)  # the addresses that lead through them
    _hold: Event = field(default_factory=Event)  # the sender waits
    _held: Event = field(default_factory=Event)  # and all that it sent is acknowledged

    # ---- the course of it -----------------------------------------------------------------------

    def run(self) -> float:
        """Do it all; return the seconds from the last fault until everything was deployed."""
        wired = self.work.wired
        with (
            proxy(KafkaConversation, wired.behind_proxy, self._rules, wired.proxy_port) as port,
            postgres_proxied(self.work.system, self._rules) as database,
        ):
            self._through = {
                "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{port}",
                "DATABASE_URL": database,
            }
            return self._run()

    def _run(self) -> float:
        self._processes = [self._start(number) for number in range(PROCESSES)]
        with self._sending() as all_sent, self._watching():
            self._say()
            said, servers_at = time.monotonic(), time.monotonic() + 5
            while self.counts["kill"] < self.kills or not all_sent.is_set():
                time.sleep(self.random.uniform(*PAUSE_S))
                self._thaw()
                (fault,) = self.random.choices(list(FAULTS), list(FAULTS.values()))
                self._inject(fault, self.random.randrange(PROCESSES))
                if time.monotonic() > servers_at:
                    servers_at = time.monotonic() + self.random.uniform(*SERVERS_EVERY_S)
                    self._inject(self.random.choice(SERVER_FAULTS))
                if time.monotonic() > said + SAY_S:
                    said = time.monotonic()
                    self._say()
            self._thaw(everything=True)
            self._rules.clear()
            took_s = self._drain()
            reach(lambda: self.watcher.read, self.sent, "the reader")
        return took_s

    def _drain(self) -> float:
        """Wait until all is deployed; return the seconds it took. Raises StandsStill."""
        started = time.monotonic()
        for number, process in enumerate(self._processes):
            if process.process.poll() is not None:
                self._processes[number] = self._start(number)
        reach(lambda: sum(self.work.system.statuses().values()), self.sent, "the consumer")
        reach(lambda: self.work.system.statuses().get("deployed", 0), self.sent, "the relay")
        return time.monotonic() - started

    def _inject(self, fault: Callable[..., None], *process: int) -> None:
        """Do one fault, to a process or to a server, and note it."""
        self.counts[fault.__name__] += 1
        self.history.append((time.time(), " ".join([fault.__name__, *map(str, process)])))
        with suppress(psycopg.Error):  # Postgres is away: the fault is there already
            fault(self, *process)

    def _say(self) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        print(f"sent {self.sent:,}, read {self.watcher.read:,}; {counts}", file=sys.stderr, flush=True)

    # ---- those around it ------------------------------------------------------------------------

    @contextmanager
    def _sending(self) -> Iterator[Event]:
        """Send the commands, spread over the time of the kills; give what tells the end."""
        done, broken = Event(), Event()
        rate = self.scenarios / (self.kills * SECONDS_A_KILL)
        keys = [UUID(int=self.random.getrandbits(128)) for _ in range(KEYS)]
        idempotent = {"enable.idempotence": True, "message.timeout.ms": 600_000}
        topic = self.work.system.settings.input_topic

        def flush(producer: Producer) -> None:
            while producer.flush(1) and not broken.is_set():
                """Wait for the broker, which may be away."""

        def send() -> None:
            producer = Producer({**self.work.system.settings.kafka, **idempotent})
            started = time.monotonic()
            while (self.sent < self.scenarios or self._hold.is_set()) and not broken.is_set():
                if self._hold.is_set():
                    held_at = time.monotonic()
                    flush(producer)
                    self._held.set()
                    while self._hold.is_set() and not broken.is_set():
                        time.sleep(0.05)
                    # To a log that was cut, the old one's numbers would look as if some were missing.
                    producer = Producer({**self.work.system.settings.kafka, **idempotent})
                    started += time.monotonic() - held_at
                due = int((time.monotonic() - started) * rate) + 1
                for _ in range(min(due, self.scenarios) - self.sent):
                    key = keys[self.sent % KEYS]
                    command = Command(key, f"rtsp://user:pw@camera/{self.sent}")
                    producer.produce(topic, msgspec.json.encode(command), str(key).encode())
                    self.sent += 1
                    if self.sent % BAD_EVERY == 0:
                        producer.produce(topic, b"{no command", str(key).encode())
                producer.poll(0.05)
            flush(producer)
            done.set()

        sender = Thread(target=send)
        sender.start()
        try:
            yield done
        except BaseException:
            broken.set()
            raise
        finally:
            sender.join()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Check each record of the output topic as it arrives."""
        stop = Event()

        settings = self.work.system.settings
        watched = {"statistics.interval.ms": 1000, "stats_cb": self.watcher.note_stats}

        def read() -> None:
            with closing(LastingReader({**settings.kafka, **watched}, settings.output_topic)) as reader:
                while not stop.is_set():
                    for record in reader.consume(1000, 0.1):
                        self.watcher.take(record)

        def watch() -> None:
            try:
                read()
            except Exception as error:  # else it would seem to stand still
                self.watcher.violations.append(Violation(time.time(), f"reader: {error!r}", "", ""))
                raise

        watcher = Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()

    def _start(self, number: int) -> Running:
        """Start process `number`: 0 and 1 are consumers, the others relays."""
        settings = self._through | {"BATCH_SIZE": str(self.random.choice([7, 50, 300]))}
        if number > 1:
            return self.work.system.start("relay", **settings)
        if self.random.random() < 0.7:
            settings["KAFKA_CONFIG_GROUP_INSTANCE_ID"] = f"consumer-{number}"
        return self.work.system.start("consumer", **settings)

    def _thaw(self, *, everything: bool = False) -> None:
        """Let those go on whose time has come."""
        now = time.monotonic()
        for entry in [entry for entry in self._frozen if everything or entry[0] < now]:
            self._frozen.remove(entry)
            if entry[1].process.poll() is None:
                entry[1].thaw()

    # ---- the faults -----------------------------------------------------------------------------

    def kill(self, number: int) -> None:
        """SIGKILL a process and start another."""
        self._processes[number].kill()
        self._processes[number] = self._start(number)

    def freeze(self, number: int) -> None:
        """SIGSTOP a process for a while."""
        process = self._processes[number]
        process.process.send_signal(signal.SIGSTOP)
        self._frozen.append((time.monotonic() + self.random.choice(FROZEN_S), process))

    def stop(self, number: int) -> None:
        """SIGTERM a process, which must end in time with 0, and start another."""
        process = self._processes[number]
        process.thaw()
        eventually(lambda: process.logged("process started"))  # before, Python has no handler yet
        process.stop()
        self._processes[number] = self._start(number)

    def end_sessions(self, number: int) -> None:
        """Terminate the sessions of the consumers or of the relays on Postgres."""
        end_sessions(self.work.system, "% consumer" if number < 2 else "outbox %")

    def disturb(self, _number: int) -> None:
        """Cut or delay a connection at the next message of some name."""
        self._rules[:] = [rule for rule in self._rules if not rule.done.is_set()]
        act = self.random.choice([cut_before, cut_after, delay(0.5)])
        self._rules.append(Rule(self.random.choice(MESSAGES), act))

    def kill_broker(self) -> None:
        """SIGKILL the broker and start it again after a while."""
        self.work.kafka.kill()
        time.sleep(self.random.uniform(0, 3))
        self.work.kafka.start()

    def freeze_broker(self) -> None:
        """SIGSTOP the broker for a while."""
        pause(self.work.kafka.pid)
        time.sleep(self.random.uniform(1, 8))
        wake(self.work.kafka.pid)

    def cut_input(self) -> None:
        """Let a partition of the input lose records that were consumed, and repair it.

        The sender sends in between, so that the log grows past the position before that is read again.
        """
        if self.sent >= self.scenarios:
            return
        self._thaw(everything=True)
        log = self.work.kafka.data / f"{self.work.system.settings.input_topic}-0"
        kept = log.parent.parent / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        with self._sender_held():
            self._replace(log, kept)
        before = self.sent
        reach(lambda: self.sent, min(before + CUT_COMMANDS, self.scenarios), "the sender")
        with self._sender_held():
            reach(lambda: -count_unconsumed(self.work.system), 0, "the consumer")
            self._replace(kept, log)
        eventually(self._repair, STILL_S)

    @contextmanager
    def _sender_held(self) -> Iterator[None]:
        """Let the sender wait, with all acknowledged, while the block runs."""
        self._held.clear()
        self._hold.set()
        try:
            assert self._held.wait(STILL_S), "the sender stands still"
            yield
        finally:
            self._hold.clear()

    def _replace(self, source: Path, target: Path) -> None:
        """Kill the broker, put a copy of one directory in place of another, and start it again."""
        self.work.kafka.kill()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        self.work.kafka.start()

    def _repair(self) -> bool:
        """Repair the partition, as an operator does, once it is refused; say whether that is done."""
        refused = "SELECT refusal FROM consumed_offsets WHERE partition = 0"
        if self.work.system.query(refused) != [("log_truncated",)]:
            return False
        repaired = run_command(self.work.system.environ, "repair", "partition", "0", "--yes")
        return repaired.returncode == 0

    def crash_postgres(self) -> None:
        """Stop Postgres at once, as a crash does, and start it again after a while."""
        self.work.postgres.stop("immediate")
        time.sleep(self.random.uniform(0, 2))
        self.work.postgres.start()

    def restart_postgres(self) -> None:
        """Restart Postgres in an orderly way."""
        self.work.postgres.stop("fast")
        self.work.postgres.start()


MESSAGES = [
    *("COMMIT", "Produce", "Fetch", "OffsetCommit", "Heartbeat", "InitProducerId"),
    *("AddPartitionsToTxn", "AddOffsetsToTxn", "TxnOffsetCommit", "EndTxn"),
]
FAULTS = {  # by weight
    Chaos.kill: 8,
    Chaos.freeze: 2,
    Chaos.stop: 2,
    Chaos.end_sessions: 2,
    Chaos.disturb: 6,
}
SERVER_FAULTS = [
    Chaos.kill_broker,
    Chaos.freeze_broker,
    Chaos.cut_input,
    Chaos.crash_postgres,
    Chaos.restart_postgres,
]


def reach(count: Callable[[], int], goal: int, what: str) -> None:
    """Wait until so many are counted, for as long as the number moves. Raises StandsStill."""
    seen, since = count(), time.monotonic()
    while seen < goal:
        time.sleep(0.2)
        if (now := count()) != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > STILL_S:
            raise StandsStill(f"{what} stands still at {seen:,} of {goal:,} for {STILL_S} s")


# ---- the result -----------------------------------------------------------------------------------


def judge(chaos: Chaos) -> tuple[dict[str, object], bool]:
    """Run it and count; return the figures and whether all is as it must be."""
    try:
        drained_s: float | None = chaos.run()
    except StandsStill as error:
        drained_s = None
        chaos.watcher.violations.append(Violation(time.time(), str(error), "", ""))
    system, sent = chaos.work.system, chaos.sent
    with closing(system.connect()) as conn:
        swapped = count_swapped(conn)
    audit, unconsumed = system.audit(), count_unconsumed(system)
    letters = len(system.read(system.settings.dead_letter_topic))
    figures: dict[str, object] = {
        "sent": sent,
        "not consumed yet": unconsumed,
        "in the outbox": audit.waiting,
        "lost": audit.lost + max(sent - audit.accepted - unconsumed, 0),
        "duplicated": audit.duplicated + audit.unknown,
        "reordered": audit.reordered + audit.scattered + swapped,
        "published": audit.published,
        "read": chaos.watcher.read,
        "reader": {"errors": chaos.watcher.errors, "partitions": chaos.watcher.where()},
        "dead letters": letters,
        "dead letters expected": sent // BAD_EVERY,
        "violations": [violation.what for violation in chaos.watcher.violations],
        "drained in s": drained_s and round(drained_s, 1),
        "faults": dict(sorted(chaos.counts.items())),
    }
    good = audit.passed and not (swapped or chaos.watcher.violations)
    return figures, good and letters == sent // BAD_EVERY and audit.accepted == audit.published == sent


UNCONSUMED = "SELECT partition, next_offset FROM consumed_offsets"


def count_unconsumed(system: System) -> int:
    """Return how many records of the input topic no consumer has committed."""
    ends = {
        n: found.end
        for n, found in find_ranges(Admin(system.settings.kafka), system.settings.input_topic).items()
    }
    for partition, next_offset in system.query(UNCONSUMED):
        ends[partition] -= next_offset
    return sum(ends.values())


def write_report(seed: int, chaos: Chaos, figures: dict[str, object]) -> Path:
    """Write each violation with what happened before it: the faults, and the processes' logs."""
    REPORTS.mkdir(exist_ok=True)
    report = REPORTS / f"chaos-{seed}.json"
    violations = [
        violation._asdict()
        | {
            "faults before": [(at, name) for at, name in chaos.history if at < violation.at][-20:],
            "logs around": list(logs_around(chaos.work.system, violation.at)),
        }
        for violation in chaos.watcher.violations[:5]
    ]
    report.write_text(json.dumps({"seed": seed, **figures, "violations": violations}, indent=1))
    return report


TIME = re.compile('^{"time": ?"([^"]+)')


def logs_around(system: System, at: float) -> Iterator[str]:
    """Yield what processes wrote from 5 s before to 1 s after a moment, with the file's name."""
    earliest, latest = (datetime.fromtimestamp(at + s, UTC).isoformat() for s in (-5, 1))
    for log in sorted(system.directory.glob("*.log")):
        for line in log.read_text(errors="replace").splitlines():
            if (time_of := TIME.match(line)) and earliest <= time_of[1] <= latest:
                yield f"{log.name}: {line}"


def main() -> int:
    """Run one chaos; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=randbelow(10_000))
    parser.add_argument("--scenarios", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=200)
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    with own_servers("chaos") as work:
        chaos = Chaos(Random(options.seed), options.scenarios, options.kills, work)
        figures, good = judge(chaos)
        print(json.dumps({"seed": options.seed, **figures}, indent=1))
        if not good:
            print(f"report: {write_report(options.seed, chaos, figures)}", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
