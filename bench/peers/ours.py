"""Our relay, measured like its peers: from the two tables to the output topic."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.peers import OutboxPeer
from bench.testbed import Testbed
from testkit.eventually import eventually
from testkit.private_servers import wait_ready
from testkit.system import System

ACKNOWLEDGED_S = 10.0


@contextmanager
def ours(testbed: Testbed, relays: int = 1) -> Iterator["RelayPeer"]:
    """Yield relays with an installation of their own."""
    with testbed.system() as system:
        yield RelayPeer(testbed, system, relays)


class RelayPeer(OutboxPeer):
    """The relay's processes, as in production."""

    insert = b"""
        WITH new AS (
            SELECT topic, key, value, (value::json ->> 'worker_id')::uuid AS worker_id
              FROM (VALUES (%s::text, %s::text, %s::text)) AS new (topic, key, value)
        ), accepted AS (
            INSERT INTO workers (worker_id, scenario_uuid, camera_url)
            SELECT worker_id, key::uuid, value::json ->> 'camera_url' FROM new
        )
        INSERT INTO outbox (lane, topic, key, value, aggregate_id)
        SELECT abs(hashtext(key) %% 4), topic, convert_to(key, 'UTF8'), convert_to(value, 'UTF8'),
               worker_id
          FROM new
    """

    def __init__(self, testbed: Testbed, system: System, relays: int) -> None:
        super().__init__(testbed.servers, system.settings.database_url)
        self.name = f"our relay ({relays})"
        self._system = system
        self._relays = relays

    @contextmanager
    def _running(self, topic: str) -> Iterator[None]:
        relays = [self._system.start("relay") for _ in range(self._relays)]
        wait_ready(*relays)
        yield
        eventually(self._is_acknowledged, ACKNOWLEDGED_S)
        for relay in relays:
            relay.stop()

    def _is_acknowledged(self) -> bool:
        return self._system.query("SELECT count(*) FROM outbox") == [(0,)]
