"""With OpenTelemetry installed, each batch is a span that is linked to the traces of its commands."""

import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.contract.records import headers_of
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import RelayMetrics, new_registry
from orchestrator.observability.tracing import Tracing
from outbox import Message
from outbox.message import OutboxRow
from testkit.system import System, take

TRACES = [f"{number:032x}" for number in (1, 2)]
PARENTS = [f"00-{trace_id}-00000000000000aa-01".encode() for trace_id in TRACES]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Collects the spans of this process; a provider can be set once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


def linked(span: ReadableSpan) -> list[str]:
    return sorted(f"{link.context.trace_id:032x}" for link in span.links)


def test_accept_and_publish_are_spans_linked_to_every_command(
    one_lane: System, spans: InMemorySpanExporter
) -> None:
    command = b'{"scenario_uuid": "5b3f6c52-6a52-4c2b-9f57-3b2f5a1c9d00", "camera_url": "rtsp://c/1"}'
    for parent in PARENTS:
        one_lane.produce(command, key=b"k", headers=[("traceparent", parent)])
    one_lane.produce(command, command, key=b"k")  # not traced
    one_lane.produce(command, key=b"k", headers=[("traceparent", b"\xff no trace")])
    with one_lane.consumer() as consumer:
        take(consumer, 5)
    accepted = spans.get_finished_spans()
    assert {span.name for span in accepted} == {"accept"}  # without a topic: none was given
    assert sorted(trace_id for span in accepted for trace_id in linked(span)) == TRACES
    spans.clear()

    with one_lane.lane(observer=RelayMetrics(new_registry("relay"), Health())) as owned:
        owned.recover()
        assert owned.drain() == 5
    (published,) = spans.get_finished_spans()
    topic = one_lane.settings.output_topic
    assert published.name == f"publish {topic}"
    assert published.kind is trace.SpanKind.CLIENT  # a message's own trace is the command's
    assert linked(published) == TRACES
    assert published.attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
        "messaging.batch.message_count": 5,
    }
    assert (published.end_time or 0) > (published.start_time or 0)

    sent = [
        dict(headers_of(record)).get("traceparent")
        for record in one_lane.read(one_lane.settings.output_topic)
    ]
    assert sent[:2] == PARENTS  # the trace itself travels on


def traced(number: int, topic: str = "orders") -> Message:
    """Return a message with a trace of its own."""
    parent = f"00-{number:032x}-00000000000000aa-01".encode()
    return Message(topic, None, b"{}", [("traceparent", parent)])


def row_of(message: Message) -> OutboxRow:
    """Return what the relay claims of a message."""
    return OutboxRow(
        0, 1, message.topic, message.key, message.value, message.headers, str(uuid4()), 0.0, 2
    )


def test_no_link_is_dropped_of_a_batch_with_more_than_a_span_may_have(
    spans: InMemorySpanExporter,
) -> None:
    messages = [traced(number) for number in range(1, 301)]
    tracing = Tracing("commands")
    tracing.accepted(messages, 0.1)
    tracing.published([row_of(message) for message in messages], 0.1)
    finished = spans.get_finished_spans()
    assert [span.dropped_links for span in finished] == [0] * 6
    for name in ("accept commands", "publish orders"):
        found = [span for span in finished if span.name == name]
        assert sorted(trace_id for span in found for trace_id in linked(span)) == [
            f"{number:032x}" for number in range(1, 301)
        ]
        counted = [(span.attributes or {})["messaging.batch.message_count"] for span in found]
        assert counted == [len(span.links) for span in found]


def test_messages_of_one_batch_to_several_topics_are_spans_of_their_own(
    spans: InMemorySpanExporter,
) -> None:
    topics = ["orders", "dead", "orders", "dead", "orders"]
    rows = [row_of(traced(number, topic)) for number, topic in enumerate(topics, 1)]
    Tracing().published(rows, 0.1)
    found = {span.name: span for span in spans.get_finished_spans()}
    assert found.keys() == {"publish orders", "publish dead"}
    for topic, messages in (("orders", 3), ("dead", 2)):
        span = found[f"publish {topic}"]
        assert len(span.links) == messages
        assert (span.attributes or {})["messaging.destination.name"] == topic


def test_an_untraced_batch_is_no_span(spans: InMemorySpanExporter) -> None:
    untraced = Message("orders", None, b"{}", [("traceparent", b"no trace"), ("other", None)])
    Tracing().accepted([untraced, Message("orders", None, b"{}")], 0.1)
    Tracing().published([row_of(untraced), row_of(Message("orders", None, None))], 0.1)
    assert not spans.get_finished_spans()


def test_without_opentelemetry_nothing_is_missed() -> None:
    """In a process of its own, where the API cannot be imported."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from orchestrator.observability.tracing import new_tracing\n"
        "import orchestrator.cli.consumer, orchestrator.cli.relay\n"
        "assert new_tracing() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
