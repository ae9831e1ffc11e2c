"""Reads librdkafka's log for requests that it may have sent twice.

librdkafka repeats a request by itself when a connection ends or an answer is late, and nothing else
tells: error_cb is not called, and the call that waits for the answer succeeds.
"""

import logging
import re
from collections.abc import Callable

# A connection that never came about has carried no request.
NEVER_CONNECTED = re.compile("in state (TRY_)?CONNECT|Failed to resolve")


class RetryDetector(logging.Handler):
    """Calls on_possible_retry(level) for FAIL, a connection has ended, and REQTMOUT, an answer is late.

    Errors go on to the ordinary log.
    """

    def __init__(self, on_possible_retry: Callable[[int], None]) -> None:
        super().__init__(logging.DEBUG)
        self._on_possible_retry = on_possible_retry

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line of the log."""
        text = record.getMessage()
        if text.startswith(("FAIL", "REQTMOUT")) and not NEVER_CONNECTED.search(text):
            self._on_possible_retry(record.levelno)
        if record.levelno >= logging.ERROR:
            logging.getLogger("librdkafka").handle(record)
