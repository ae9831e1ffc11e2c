"""The SQL half: the statements of consumer and relay at once, against the cost of the statements alone.

Three ways to the same rows, each side in a process of its own. `product`: the functions of consumer
and relay, with parsed batches as input. `replay`: the same statements with parameters encoded
beforehand, by plain libpq calls. `pgbench`: equivalent statements that generate their rows in the
server, see bench/pgbench.py.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

from bench.load import fill_outbox
from bench.plain_calls import Call, Plain, array_of, column, record
from bench.publishers import NoPublisher
from bench.testbed import Testbed
from orchestrator.consumer import offsets
from orchestrator.consumer.offsets import OffsetMove, Position
from orchestrator.contract import workers
from orchestrator.contract.messages import DeployOrder, encode_order, worker_id
from orchestrator.runtime.database import open_session
from orchestrator.runtime.process import configure_gc
from outbox import Message, enqueue, transaction
from testkit.system import OwnedLane, System

BATCH = 1000
TOPIC_ID = UUID(int=1)

Side = Callable[[dict[str, str], int], tuple[float, float]]  # environ, rows: start and end


def sql_product(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure the product's own functions, both sides at once."""
    return both_sides(testbed, rows, insert_product, relay_product)


def sql_replay(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure the statements alone, both sides at once: the SQL limit."""
    return both_sides(testbed, rows, insert_replay, relay_replay)


def both_sides(testbed: Testbed, rows: int, insert: Side, relay: Side) -> dict[str, float]:
    """Insert rows while as many others are claimed and acknowledged; rate of the slower side."""
    context = get_context("spawn")
    with testbed.system(lanes=1) as system:
        fill_outbox(system, rows)
        workers_of = ProcessPoolExecutor(2, context, take_barrier, (context.Barrier(2),))
        with workers_of as pool:
            sides = [pool.submit(side, system.environ, rows) for side in (insert, relay)]
            spans = [side.result() for side in sides]
    took = max(end for _, end in spans) - min(begin for begin, _ in spans)
    insert_s, relay_s = (end - begin for begin, end in spans)
    return {"rate": rows / took, "insert_rate": rows / insert_s, "relay_rate": rows / relay_s}


_together: Barrier


def take_barrier(barrier: Barrier) -> None:
    """Keep the barrier at which both sides wait before they start."""
    global _together  # the only way to give it to a worker process
    _together = barrier
    configure_gc()


# ---- the consumer's side --------------------------------------------------------------------------


class Input(NamedTuple):
    """A batch of the consumer when it goes to Postgres."""

    moves: list[OffsetMove]
    orders: list[DeployOrder]
    messages: list[Message]


def inputs(topic: str, rows: int) -> Iterator[Input]:
    """Yield batches, ten orders for each scenario."""
    scenarios = [uuid4() for _ in range(rows // 10)]
    before = Position(TOPIC_ID, 0, -1)
    for first in range(0, rows, BATCH):
        orders = [
            DeployOrder(
                worker_id(TOPIC_ID, 0, number, time.time_ns() // 1_000_000),
                scenarios[number // 10],
                f"rtsp://bench:secret@camera.example/{number}",
            )
            for number in range(first, first + BATCH)
        ]
        messages = [
            Message(topic, str(o.scenario_uuid).encode(), encode_order(o), aggregate_id=o.worker_id)
            for o in orders
        ]
        move = OffsetMove(0, before, first + BATCH, 0)
        before = before.moved(move)
        yield Input([move], orders, messages)


def insert_product(environ: dict[str, str], rows: int) -> tuple[float, float]:
    """Insert as the consumer does."""
    settings = System(environ, Path()).settings
    batches = list(inputs(settings.output_topic, rows))
    with closing(open_session(settings, "bench")) as conn:
        offsets.insert_position(conn, "in", 0, TOPIC_ID, 0)
        _together.wait()
        began = time.time()
        for batch in batches:
            with transaction(conn):
                offsets.advance(conn, "in", TOPIC_ID, batch.moves)
                workers.insert(conn, batch.orders)
                enqueue(conn, batch.messages, 1)
        return began, time.time()


def insert_replay(environ: dict[str, str], rows: int) -> tuple[float, float]:
    """Insert the same with parameters that were encoded beforehand."""
    settings = System(environ, Path()).settings
    with closing(open_session(settings, "bench")) as conn:
        offsets.insert_position(conn, "in", 0, TOPIC_ID, 0)
        calls = record(conn)
        recorded = []
        with conn.transaction(force_rollback=True):
            for batch in inputs(settings.output_topic, rows):
                calls.clear()
                offsets.advance(conn, "in", TOPIC_ID, batch.moves)
                workers.insert(conn, batch.orders)
                enqueue(conn, batch.messages, 1)
                recorded.append(list(calls))
        plain = Plain(conn)
        _together.wait()
        began = time.time()
        for calls in recorded:
            plain.run(b"BEGIN")
            for call in calls:
                plain.call(call)
            plain.run(b"COMMIT")
        return began, time.time()


# ---- the relay's side -----------------------------------------------------------------------------


def relay_product(environ: dict[str, str], rows: int) -> tuple[float, float]:
    """Claim and acknowledge as the relay does, and publish nothing."""
    system = System(environ, Path())
    with system.lane(batch_size=BATCH, publisher=NoPublisher) as lane:
        lane.recover()
        _together.wait()
        began = time.time()
        done = 0
        while done < rows:
            done += lane.run_once()
        lane.relay.acknowledge()
        return began, time.time()


def relay_replay(environ: dict[str, str], rows: int) -> tuple[float, float]:
    """Run the statements of a lane, and read only the ids."""
    system = System(environ, Path())
    fill_outbox(system, 2 * BATCH)  # which the recorded cycles publish
    with system.lane(batch_size=BATCH, publisher=NoPublisher) as lane:
        lock, acknowledge, deploy, claim, begin = record_cycle(lane)
        plain = Plain(lane.conn)
        ids, claimed, done = array_of(20, []), 0, 0
        _together.wait()
        began = time.time()
        while done < rows or claimed:
            plain.run(b"BEGIN")
            plain.call(lock)
            if claimed:
                acknowledged = plain.call(acknowledge.with_array("ids", ids))
                workers_of = array_of(2950, column(acknowledged, 0))
                plain.call(deploy.with_array("ids", workers_of))
            found = column(plain.call(claim), 1) if done < rows else []
            ids, claimed = array_of(20, found), len(found)
            done += claimed
            inflight = b",".join(b"%d" % int.from_bytes(one) for one in found)
            plain.call(begin.with_array("inflight", array_of(25, [b"{" + inflight + b"}"])))
            plain.run(b"COMMIT")
        return began, time.time()


def record_cycle(lane: OwnedLane) -> list[Call]:
    """Return the statements of a cycle that acknowledges a batch and claims the next one."""
    calls = record(lane.conn)
    lane.recover()
    lane.run_once()
    calls.clear()
    lane.run_once()
    queries = [call.query for call in calls]
    recorded = calls[
        queries.index(b"BEGIN ISOLATION LEVEL READ COMMITTED") + 1 : queries.index(b"COMMIT")
    ]
    lane.relay.acknowledge()  # no batch is left over
    return recorded
