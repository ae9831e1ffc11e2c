"""Spans for OpenTelemetry, where its API is installed (extra `otel`); elsewhere no span and no cost.

One span per batch and topic, or one for every LINKS messages of it, linked to the trace of each command
in it that has one (W3C Trace Context). Names, kinds and attributes are those of OpenTelemetry's
conventions for messaging. The traceparent itself travels from the input through the outbox to the
deploy order, with or without spans of ours.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

from outbox import Message, OutboxRow

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:
    INSTALLED = False
else:
    INSTALLED = True

LINKS = 128  # per span: the SDK drops more, unless OTEL_SPAN_LINK_COUNT_LIMIT says otherwise


class Tracing:
    """Records the spans of one process, after the fact, from the time a batch took: none is ever open.

    source: the topic that a consumer reads, for the span's name.
    """

    def __init__(self, source: str | None = None) -> None:
        self._source = source
        self._tracer = trace.get_tracer("orchestrator")
        self._propagator = TraceContextTextMapPropagator()

    def accepted(self, messages: Sequence[Message], took_s: float) -> None:
        """Record a consumer's Postgres transaction."""
        parents = [dict(one.headers).get("traceparent") if one.headers else None for one in messages]
        self._record("accept", "process", trace.SpanKind.CONSUMER, self._source, parents, took_s)

    def published(self, rows: Sequence[OutboxRow], took_s: float) -> None:
        """Record a relay's Kafka transaction.

        Its spans are of kind CLIENT: a message carries the trace of its command, not ours.
        """
        by_topic: defaultdict[str, list[bytes | None]] = defaultdict(list)
        for row in rows:
            parent = dict(row.headers).get("traceparent") if row.headers else None
            by_topic[row.topic].append(parent)
        for topic, parents in by_topic.items():
            self._record("publish", "send", trace.SpanKind.CLIENT, topic, parents, took_s)

    def _record(
        self,
        name: str,
        operation: str,
        kind: "trace.SpanKind",
        topic: str | None,
        parents: Sequence[bytes | None],
        took_s: float,
    ) -> None:
        """Record the spans of one topic's messages. parents: the traceparent of each, if any."""
        ended = time.time_ns()
        attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": name,
            "messaging.operation.type": operation,
        }
        if topic:
            name, attributes["messaging.destination.name"] = f"{name} {topic}", topic
        for part in (parents[first : first + LINKS] for first in range(0, len(parents), LINKS)):
            contexts = map(self._context, filter(None, part))
            links = [trace.Link(context) for context in contexts if context.is_valid]
            if links:
                self._tracer.start_span(
                    name,
                    kind=kind,
                    attributes=attributes | {"messaging.batch.message_count": len(part)},
                    links=links,
                    start_time=ended - int(took_s * 1e9),
                ).end(ended)

    def _context(self, parent: bytes) -> "trace.SpanContext":
        context = self._propagator.extract({"traceparent": parent.decode("ascii", "replace")})
        return trace.get_current_span(context).get_span_context()


def new_tracing(source: str | None = None) -> Tracing | None:
    """Return what records spans; None where OpenTelemetry is not installed."""
    return Tracing(source) if INSTALLED else None
