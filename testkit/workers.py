"""pytest-xdist: the controller runs the servers, and its workers get their addresses from it.

Without xdist there is neither: the one process runs the servers itself.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.connection import Client, Listener
from threading import Thread

from orchestrator.embedded import Servers
from testkit.servers import START_ERRORS

Address = tuple[str, bytes]  # of the controller's socket, with its authentication key


class SharedServers:
    """Runs servers once the first worker needs them, and sends every worker their addresses."""

    def __init__(self, run: Callable[[], AbstractContextManager[Servers]]) -> None:
        key = secrets.token_bytes()
        self._listener = Listener(family="AF_UNIX", authkey=key)
        self.address: Address = (str(self._listener.address), key)
        self._run = run
        self._running = ExitStack()
        self._answer: Servers | str | None = None
        Thread(target=self._serve, name="servers for the workers", daemon=True).start()

    def close(self) -> None:
        """Stop the servers."""
        self._listener.close()
        self._running.close()

    def _serve(self) -> None:
        while True:
            try:
                worker = self._listener.accept()
            except OSError:  # closed
                return
            with worker:
                self._answer = self._answer or self._start()
                worker.send(self._answer)

    def _start(self) -> Servers | str:
        """Start the servers; return their addresses, or why there are none."""
        try:
            return self._running.enter_context(self._run())
        except START_ERRORS as error:
            return str(error)


@contextmanager
def servers_of_controller(address: Address) -> Iterator[Servers]:
    """Use the servers that the controller runs. Raises RuntimeError if it could not start them."""
    path, key = address
    with Client(path, authkey=key) as controller:
        answer: Servers | str = controller.recv()
    if isinstance(answer, str):
        raise RuntimeError(answer)  # noqa: TRY004  # not a wrong type: the text of an error
    yield answer
