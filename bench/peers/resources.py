"""The resources of a peer: topics, a database, a process, a producer."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from uuid import uuid4

import psycopg
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AdminClient,
    NewTopic,
)
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bench.peers.orders import NotDelivered
from orchestrator.embedded import Servers
from orchestrator.kafka.topics import Admin, read_log_start_offsets
from testkit.eventually import eventually
from testkit.system import PARTITIONS

TOPIC_S = 30.0  # until a new topic has leaders


@contextmanager
def new_topic(servers: Servers, suffixes: Sequence[str] = ()) -> Iterator[str]:
    """Create a topic with the usual partitions, and one for each suffix of its name."""
    admin = Admin({"bootstrap.servers": servers.bootstrap_servers})
    topic = f"peer-{uuid4().hex[:12]}"
    names = [topic, *(topic + suffix for suffix in suffixes)]
    for made in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
        made.result()
    for name in names:
        eventually(partial(_has_leaders, admin, name), TOPIC_S)
    try:
        yield topic
    finally:
        for gone in admin.delete_topics(names).values():
            gone.result()


def _has_leaders(admin: AdminClient, topic: str) -> bool:
    """Return whether the topic can be read. Too early, a reader finds no partitions."""
    try:
        return bool(read_log_start_offsets(admin, topic, range(PARTITIONS)))
    except KafkaException:
        return False


@contextmanager
def new_database(servers: Servers, *definitions: bytes) -> Iterator[str]:
    """Create a database, run the statements in it, and yield its URL."""
    name = f"peer_{uuid4().hex[:12]}"
    url = make_conninfo(servers.database_url, dbname=name)
    with psycopg.connect(servers.database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                for definition in definitions:
                    conn.execute(definition)
            yield url
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def child(work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Run `work`, which never returns, in a process of its own while the block runs.

    Raises NotDelivered if it did return.
    """
    process = get_context("spawn").Process(target=_work, args=(work, *arguments), daemon=True)
    process.start()
    try:
        yield
        if process.exitcode is not None:
            raise NotDelivered(f"the peer's process ended with exit status {process.exitcode}")
    finally:
        process.terminate()
        process.join()


def _work(work: Callable[..., None], *arguments: object) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    work(*arguments)


def _end_with_parent() -> None:
    """End this process when its parent is gone, even by SIGKILL."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def new_producer(bootstrap_servers: str, settings: Mapping[str, str | int | bool]) -> Producer:
    """Return a producer whose calls raise KafkaException for records that were not delivered."""
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "queue.buffering.max.messages": 1_000_000,
            "delivery.report.only.error": True,
            "on_delivery": _raise_error,
            **settings,
        },
        logger=logging.getLogger("librdkafka"),
    )


def _raise_error(error: KafkaError | None, _message: Message) -> None:
    if error is not None:
        raise KafkaException(error)
