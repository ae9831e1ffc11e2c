"""`python -m bench.peers`: all peers, or one, on servers of its own."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from bench.peers import Peer
from bench.peers.debezium import debezium
from bench.peers.naive import naive
from bench.peers.polling import polling
from orchestrator.embedded import Servers, embedded_servers

SETTINGS = {"wal_level": "logical"}

Start = Callable[[Servers, Path], AbstractContextManager[Peer]]
PEERS: dict[str, Start] = {
    "naive": lambda servers, _: naive(servers),
    "polling-100": lambda servers, _: polling(servers, 100),
    "polling-1000": lambda servers, _: polling(servers, 1000),
    "debezium": lambda servers, directory: debezium(servers, directory / "exact", exactly_once=True),
    "debezium-alo": lambda servers, directory: debezium(servers, directory / "alo", exactly_once=False),
}


def main() -> None:
    """Measure, and print a line for each peer."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--only", choices=PEERS)
    arguments = parser.parse_args()
    with (
        new_directory() as directory,
        embedded_servers(directory, postgres_settings=SETTINGS, kafka_login=False) as servers,
    ):
        for name in [arguments.only] if arguments.only else PEERS:
            with PEERS[name](servers, directory) as peer:
                rows = arguments.rows // (10 if name == "naive" else 1)
                rate = peer.drain(rows)
                cuts = quantiles(peer.latencies(arguments.rate, arguments.seconds), n=100)
                print(f"{peer.name}: {rate:,.0f}/s, p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms")


@contextmanager
def new_directory() -> Iterator[Path]:
    """Create a directory that other users may enter: under root, Postgres runs as another user."""
    with TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


if __name__ == "__main__":
    main()
