"""With OpenTelemetry installed, each batch is a span that is linked to the traces of its commands."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator.health import Health
from orchestrator.messages import headers_of
from orchestrator.metrics import RelayMetrics, new_registry
from tests.system import System, take

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
    assert {span.name for span in accepted} == {"accept"}
    assert sorted(trace_id for span in accepted for trace_id in linked(span)) == TRACES
    spans.clear()

    with one_lane.lane(observer=RelayMetrics(new_registry("relay"), Health())) as owned:
        owned.recover()
        assert owned.drain() == 5
    (published,) = spans.get_finished_spans()
    assert published.name == "publish"
    assert linked(published) == TRACES
    assert published.attributes is not None
    assert published.attributes["messaging.batch.message_count"] == 5
    assert (published.end_time or 0) > (published.start_time or 0)

    sent = [
        dict(headers_of(record)).get("traceparent")
        for record in one_lane.read(one_lane.settings.output_topic)
    ]
    assert sent[:2] == PARENTS  # the trace itself travels on


def test_without_opentelemetry_nothing_is_missed() -> None:
    """In a process of its own, where the API cannot be imported."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from orchestrator.tracing import new_tracing\n"
        "import orchestrator.cli\n"
        "assert new_tracing() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
