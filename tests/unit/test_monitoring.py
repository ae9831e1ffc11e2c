"""Alerts, dashboard and runbook: Prometheus accepts them, and they match the code and each other."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.cli.parser import new_parser
from orchestrator.contract.messages import InvalidReason
from orchestrator.observability.health import Health
from orchestrator.observability.metrics import ConsumerMetrics, RelayMetrics, new_registry
from orchestrator.operations.doctor.runner import CHECKS
from outbox.lane import REFUSED, Outcome

Rule = dict[str, Any]

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "alerts.yml"
README, RUNBOOK = (ROOT / "README.md").read_text(), (ROOT / "docs" / "runbook.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
ALERTS: list[Rule] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
every_alert = pytest.mark.parametrize(
    "alert", ALERTS, ids=[f"{rule['alert']} {rule['labels']['severity']}" for rule in ALERTS]
)


def promtool(*arguments: str, stdin: bytes | None = None) -> None:
    """Run Prometheus's own checker, which must find nothing; skip the test if it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (apt install prometheus)")
    ran = subprocess.run(
        [program, *arguments],
        input=stdin,
        cwd=PROMETHEUS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout.decode()


# ---- what the processes export --------------------------------------------------------------------


def registry_of(process: str) -> CollectorRegistry:
    registry = new_registry(process)
    {"consumer": ConsumerMetrics, "relay": RelayMetrics}[process](registry, Health())
    return registry


PROCESSES = ("consumer", "relay")
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
EXPORTED = {
    family.name + suffix
    for process in PROCESSES
    for family in registry_of(process).collect()
    for suffix in SUFFIXES[family.type]
}


@pytest.mark.parametrize("process", PROCESSES)
def test_names_and_helps_of_all_metrics_follow_prometheus_rules(process: str) -> None:
    promtool("check", "metrics", stdin=generate_latest(registry_of(process)))


def samples_of(process: str, name: str) -> dict[str, float]:
    """Return the samples of a process at its start: value by labels."""
    return {
        ",".join(sample.labels.values()): sample.value
        for family in registry_of(process).collect()
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize(
    ("process", "name", "values"),
    [
        ("consumer", "orchestrator_records_total", ["accepted", "duplicate", "dead_letter"]),
        ("consumer", "orchestrator_dead_letters_total", [reason.value for reason in InvalidReason]),
        ("relay", "outbox_recoveries_total", [outcome.value for outcome in Outcome]),
        ("relay", "outbox_transaction_duration_seconds_count", ["postgres", "kafka"]),
    ],
)
def test_each_series_exists_from_the_start_with_value_zero(
    process: str, name: str, values: list[str]
) -> None:
    """Otherwise rate() and increase() would miss the first event."""
    assert samples_of(process, name) == dict.fromkeys(values, 0)


# Parts of an expression that are no names of series.
NO_NAMES = re.compile(
    r""" "[^"]*" | \{[^}]*\} | \[[^]]*\]                  # strings, selectors, windows
       | \b(?:by|on|without|ignoring)\s*\([^)]*\)         # labels
       | \b(?:and|or|unless|bool|offset)\b
    """,
    re.VERBOSE,
)
NAME = re.compile(r"(?<![\w.])[a-zA-Z_:][\w:]*+(?!\s*\()")  # not a duration, not a function


def series_of(expression: str) -> set[str]:
    """Return the series that an expression of PromQL reads."""
    return set(NAME.findall(NO_NAMES.sub(" ", expression)))


def test_the_series_of_an_expression_are_found() -> None:
    expression = 'sum by (x) (rate(a_total{l="b"}[5m])) > bool 1 unless on (y) c:d offset 5m'
    assert series_of(expression) == {"a_total", "c:d"}


# ---- the alerts -------------------------------------------------------------------------------------


def test_prometheus_accepts_its_settings_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES.name)


def test_prometheus_loads_the_rules() -> None:
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert settings["rule_files"] == [RULES.name]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    mounted = compose["services"]["prometheus"]["volumes"]
    for file in ("prometheus.yml", RULES.name):
        assert f"./prometheus/{file}:/etc/prometheus/{file}:ro" in mounted


def test_each_alert_fires_when_it_should_and_is_silent_when_not() -> None:
    promtool("test", "rules", "alerts_test.yml")


@every_alert
def test_each_alert_is_tested_to_fire_and_to_be_silent(alert: Rule) -> None:
    severity = alert["labels"]["severity"]
    seen = [
        any(one["exp_labels"]["severity"] == severity for one in look.get("exp_alerts", ()))
        for test in yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
        for look in test["alert_rule_test"]
        if look["alertname"] == alert["alert"]
    ]
    assert set(seen) == {True, False}


@every_alert
def test_an_alert_has_a_severity_and_a_section_in_the_runbook(alert: Rule) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert re.fullmatch(r"[1-9]\d*m", alert["for"])
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    section = alert["alert"].lower()
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{section}"
    assert section in SECTIONS


@every_alert
def test_an_alert_reads_what_the_processes_export(alert: Rule) -> None:
    assert series_of(alert["expr"])
    assert series_of(alert["expr"]) <= EXPORTED


# ---- the dashboard ----------------------------------------------------------------------------------

PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
QUERIES = {
    f"{title} {target['refId']}": str(target["expr"])
    for title, panel in PANELS.items()
    for target in panel["targets"]
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_panel_reads_what_the_processes_export(query: str) -> None:
    assert series_of(query)
    assert series_of(query) <= EXPORTED


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_panel_keeps_the_lanes_of_two_installations_apart(query: str) -> None:
    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        by = set(labels.split(", "))
        assert "namespace" in by or not by & {"lane", "partition"}


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {series for query in QUERIES.values() for series in series_of(query)}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    assert families == {re.sub(r"_(bucket|count|sum)$", "", name) for name in EXPORTED}


def sources(part: object) -> Iterator[Any]:
    """Yield every data source that a part of the dashboard names."""
    for name, value in part.items() if isinstance(part, dict) else ():
        yield from [value] if name == "datasource" else sources(value)
    for value in part if isinstance(part, list) else ():
        yield from sources(value)


def test_the_data_source_of_the_dashboard_can_be_chosen() -> None:
    variable = DASHBOARD["templating"]["list"][0]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    found = list(sources(DASHBOARD))
    assert len(found) > len(PANELS)  # the other variable queries it, too
    for source in found:
        assert source == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}


def test_the_dashboard_can_be_imported_beside_any_other() -> None:
    assert DASHBOARD["uid"] is DASHBOARD["id"] is None
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(PANELS)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (column, row)
        for place in places
        for column in range(place["x"], place["x"] + place["w"])
        for row in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))  # no panel covers another
    assert max(column for column, _ in cells) < 24  # the width of a dashboard


# ---- the runbook ------------------------------------------------------------------------------------


def anchor_of(heading: str) -> str:
    """Return the anchor of a heading, as GitHub generates it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


HEADINGS = re.compile(r"^#+ (.*)\n", re.MULTILINE)
TEXTS = HEADINGS.split(RUNBOOK)[1:]
SECTIONS = {anchor_of(heading): text for heading, text in zip(TEXTS[::2], TEXTS[1::2], strict=True)}
PARTS = ["Symptom", "Cause", "Check", "Remedy"]


@pytest.mark.parametrize("section", [name for name, text in SECTIONS.items() if "- **" in text])
def test_a_section_goes_from_symptom_to_remedy(section: str) -> None:
    assert re.findall(r"^- \*\*(\w+)\*\*: ", SECTIONS[section], re.MULTILINE) == PARTS


def test_the_runbook_begins_with_the_common_symptoms() -> None:
    first = ["cannot-reach-kafka", "cannot-reach-postgres", "no-messages", "worker-not-saved"]
    assert [name for name, text in SECTIONS.items() if "- **" in text][:4] == first


def refusals() -> Iterator[str]:
    """Yield the refusals of the README by the names of their sections in the runbook."""
    table = README.partition("| refusal |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        for name in line.split("|")[1].replace("00N ", "").split(","):
            yield anchor_of(name.partition("refused:")[2].strip() or name.strip())


def test_every_refusal_has_its_section() -> None:
    named = list(refusals())
    assert len(named) == 9
    assert {outcome.value for outcome in REFUSED} < set(named)
    assert set(named) < SECTIONS.keys()


def test_every_check_of_the_doctor_has_its_line() -> None:
    lines = re.findall(r"^\| `(.*?)` \|", SECTIONS["doctor"], re.MULTILINE)
    assert lines == list(CHECKS)


def test_every_link_has_a_target() -> None:
    links = re.findall(r"\]\(([^)]*)\)", RUNBOOK)
    anchors = [link.removeprefix("#") for link in links if link.startswith("#")]
    assert anchors
    assert set(anchors) <= SECTIONS.keys()
    for link in set(links) - {f"#{anchor}" for anchor in anchors}:
        file, _, anchor = link.partition("#")
        headings = HEADINGS.findall((ROOT / "docs" / file).read_text())
        assert anchor in {"", *map(anchor_of, headings)}
    for anchor in re.findall(r"runbook\.md#([\w-]+)", README):
        assert anchor in SECTIONS


EXAMPLES = {
    "N": "0",
    "OFFSET": "7",
    "PARTITION:OFFSET": "0:7",
    "LANE:ID": "0:7",
    "SCENARIO_UUID": "0" * 32,
}
COMMANDS = sorted(set(re.findall(r"`orchestrator (.*?)`", RUNBOOK, re.DOTALL)))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_runbook_can_be_parsed(command: str) -> None:
    new_parser().parse_args([EXAMPLES.get(word, word) for word in shlex.split(command)])
