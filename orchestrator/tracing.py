"""Spans for OpenTelemetry, where its API is installed (extra `otel`); elsewhere no span and no cost.

One span a batch, linked to the trace of every command in it that carries one (W3C Trace Context), as
OpenTelemetry's conventions for messaging have it for batches. The traceparent itself travels on from
the input through the outbox to the deploy order, whether or not anybody traces here.
"""

import time
from base64 import b64decode
from collections.abc import Iterable, Sequence

from outbox import Message
from outbox.message import OutboxRow

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:
    INSTALLED = False
else:
    INSTALLED = True


class Tracing:
    """Makes the spans of one process. After the fact, from what a batch took: no span is ever open."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("orchestrator")
        self._propagator = TraceContextTextMapPropagator()

    def accepted(self, messages: Sequence[Message], took_s: float) -> None:
        """Record a consumer's Postgres transaction."""
        parents = [dict(message.headers).get("traceparent") for message in messages if message.headers]
        self._record("accept", "process", filter(None, parents), len(messages), took_s)

    def published(self, rows: Sequence[OutboxRow], took_s: float) -> None:
        """Record a relay's Kafka transaction."""
        stored = [dict(row.headers).get("traceparent") for row in rows if row.headers]
        parents = [b64decode(parent) for parent in stored if parent]
        self._record("publish", "send", parents, len(rows), took_s)

    def _record(
        self, name: str, operation: str, parents: Iterable[bytes], messages: int, took_s: float
    ) -> None:
        contexts = map(self._context, parents)
        links = [trace.Link(context) for context in contexts if context.is_valid]
        if not links:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            name,
            kind=trace.SpanKind.CONSUMER if name == "accept" else trace.SpanKind.PRODUCER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": operation,
                "messaging.batch.message_count": messages,
            },
            links=links,
            start_time=ended - int(took_s * 1e9),
        )
        span.end(ended)

    def _context(self, parent: bytes) -> "trace.SpanContext":
        carrier = {"traceparent": parent.decode("ascii", "replace")}
        context = self._propagator.extract(carrier)
        return trace.get_current_span(context).get_span_context()


def new_tracing() -> Tracing | None:
    """Return what makes the spans; None where OpenTelemetry is not installed."""
    return Tracing() if INSTALLED else None
