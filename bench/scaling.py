"""Two processes against one, where waiting for Kafka takes the time.

On two cores two busy processes cannot be twice as fast as one. So a proxy delays each response of the
brokers by 5 ms, batches are small, and all processes together leave the machine idle.
"""

import time
from contextlib import closing

from bench.load import fill_input, fill_outbox, reading
from bench.testbed import Testbed
from orchestrator.embedded import Servers
from testkit.installations import new_system
from testkit.proxied import led_through, wired_kafka
from testkit.proxy import ANY, Rule, delay
from testkit.system import System

LATE_S = 0.005
BATCH = "20"


def scaling(testbed: Testbed, rows: int) -> dict[str, float]:
    """Measure one and two relays with a lane each, and one and two consumers with a partition each."""
    with wired_kafka() as kafka:
        servers = Servers(testbed.servers.database_url, kafka.bootstrap_servers)
        with kafka.proxied(Rule(ANY, delay(LATE_S), hit=0, answers=True)) as slow:
            figures: dict[str, float] = {}
            for processes in (1, 2):
                with new_system(servers, testbed.template, testbed.directory, processes) as system:
                    led = led_through(system, slow, BATCH_SIZE=BATCH)
                    figures[f"relays_{processes}"] = relays(led, system, processes, rows)
                    figures[f"consumers_{processes}"] = consumers(led, system, processes, rows)
    return figures | {
        "relays": figures["relays_2"] / figures["relays_1"],
        "consumers": figures["consumers_2"] / figures["consumers_1"],
    }


def relays(led: System, system: System, processes: int, rows: int) -> float:
    """Return rows a second of this number of relays."""
    fill_outbox(system, rows)
    with reading(system) as arrivals:
        running = [led.start("relay") for _ in range(processes)]
        arrivals.wait_for(rows)
    for process in running:
        process.kill()
    return arrivals.rate(rows)


CONSUMED = "SELECT coalesce(sum(next_offset), 0) FROM consumed_offsets"


def consumers(led: System, system: System, processes: int, commands: int) -> float:
    """Return commands a second of this number of consumers."""
    fill_input(system, commands)
    running = [led.start("consumer") for _ in range(processes)]
    curve: list[tuple[float, int]] = []
    with closing(system.connect()) as conn:
        while not curve or curve[-1][1] < commands:
            ((consumed,),) = conn.execute(CONSUMED).fetchall()
            curve.append((time.perf_counter(), int(str(consumed))))
            time.sleep(0.02)
    for process in running:
        process.kill()
    began, before = next(point for point in curve if point[1] >= commands / 4)
    ended, after = curve[-1]
    return (after - before) / (ended - began)
