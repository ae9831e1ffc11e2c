"""Does Kafka answer this relay? What its work and its probes have met.

Invariant: the first answer is a committed transaction. A relay that reaches the brokers, but may not
publish, has none. Safety does not rest on it: it decides only which relays share the lanes.
"""

import logging
import math
import time
from threading import Event

from outbox.timings import Timings

log = logging.getLogger(__name__)

ADVICE = "check this relay's Kafka address, password, network and ACLs; other relays take its lanes"
MAX_DISTRUST_S = 600.0


class KafkaAnswers:
    """Written by the relay's thread (the work) and by that of its probe, each its own fields.

    Where the work fails although probes are answered (no Write on the output topic), probes do not
    count: the relay is distrusted. Once it has given its lanes up, it has no work to prove itself by:
    so probes count again, some time after the last failure.
    """

    def __init__(self, timings: Timings) -> None:
        self.wanted = Event()  # a probe, now
        self._timings = timings
        self._asked_at: float | None = None  # the probe's first question since an answer to one
        self._probe_answered_at = -math.inf
        self._probe_error = "no answer yet"
        self._work_answered_at = -math.inf
        self._failing_since: float | None = None  # when the work began that fails since then
        self._failed_at = -math.inf
        self._work_error = ""
        self._distrust_s = 0.0
        self._is_logged_silent = False

    # ---- the work -----------------------------------------------------------------------------------

    def published(self) -> None:
        """Note that rows are in Kafka."""
        self._work_answered_at = time.monotonic()
        self._failing_since = None

    def recovered(self) -> None:
        """Note that what had failed is in Kafka now."""
        if self._failing_since is not None:
            self._failing_since = None
            self.wanted.set()

    def failed(self, began_at: float, error: str) -> None:
        """Note that work that began then (monotonic) has failed."""
        self.wanted.set()
        if self._probes_are_silent():
            return  # it was not the work alone
        if self._failing_since is None:
            self._failing_since, self._distrust_s = began_at, self._timings.kafka_distrust_s
        elif self._probe_answered_at > self._trusted_at:
            self._failing_since = began_at
            self._distrust_s = min(2 * self._distrust_s, MAX_DISTRUST_S)
        self._failed_at, self._work_error = time.monotonic(), error

    # ---- the probe ----------------------------------------------------------------------------------

    def asked(self) -> None:
        """Note that a probe begins."""
        if self._unanswered_since is None:
            self._asked_at = time.monotonic()

    def probe_answered(self) -> None:
        """Note that Kafka has answered a probe."""
        self._probe_answered_at, self._asked_at = time.monotonic(), None

    def probe_failed(self, error: str) -> None:
        """Note why Kafka has not answered a probe."""
        self._probe_error = error

    def needs_probe(self) -> bool:
        """Say whether only a probe can tell."""
        if self._is_distrusted():
            return time.monotonic() > self._trusted_at
        is_open = self._unanswered_since is not None or self.wanted.is_set()
        return is_open or self._silent_for() > self._timings.kafka_probe_s

    # ---- the judgement ------------------------------------------------------------------------------

    @property
    def error(self) -> str | None:
        """Return why Kafka does not answer, or not yet; None if it does."""
        if self._is_distrusted():
            return self._work_error
        never = self._silent_for() == math.inf
        return self._probe_error if never or self.is_silent else None

    @property
    def is_silent(self) -> bool:
        """Say whether Kafka has not answered for too long."""
        return self._is_distrusted() or self._probes_are_silent()

    def review(self) -> None:
        """Log that Kafka answers no more, or again. Called by the relay's thread now and then."""
        if self._probes_are_silent():
            self._failing_since = None  # it was not the work alone
        if self.is_silent == self._is_logged_silent:
            return
        self._is_logged_silent = not self._is_logged_silent
        if self._is_logged_silent:
            log.warning("kafka silent", extra={"error": self.error, "advice": ADVICE})
        else:
            log.info("kafka answers")

    def _probes_are_silent(self) -> bool:
        since = self._unanswered_since
        return since is not None and time.monotonic() - since > self._timings.kafka_silence_s

    def _is_distrusted(self) -> bool:
        """Say whether the work has failed for too long, so that answers to probes do not count."""
        since, asked_at = self._failing_since, self._unanswered_since
        if since is None or self._probe_answered_at > self._trusted_at:
            return False
        if asked_at is not None and asked_at < self._failed_at:
            return False  # a probe was in flight: it will tell
        return time.monotonic() - since > self._timings.kafka_silence_s

    @property
    def _trusted_at(self) -> float:
        """Return when probes count again."""
        return self._failed_at + self._distrust_s

    @property
    def _unanswered_since(self) -> float | None:
        """Return when a question was asked that neither a probe nor the work has got an answer to."""
        asked_at = self._asked_at
        return None if asked_at is None or asked_at < self._work_answered_at else asked_at

    def _silent_for(self) -> float:
        """Return the time since the last answer; infinite if there was none."""
        return time.monotonic() - max(self._work_answered_at, self._probe_answered_at)
