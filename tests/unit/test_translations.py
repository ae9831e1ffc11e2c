"""English and Russian pages say the same: settings, commands, metrics, alerts, anchors."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.config.settings import DEFAULT_SCHEMES, Settings

ROOT = Path(__file__).parents[2]
PAGES = ["README", "docs/platform", "docs/runbook"]
ANCHOR = re.compile(r'<a id="([\w-]+)"></a>\n#+ .*\n|^#+ (.*)\n', re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def anchor_of(heading: str) -> str:
    """Return the anchor of a heading, as GitHub generates it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections(text: str) -> dict[str, str]:
    """Return the text of each section by its anchor: one that is given, or that of its heading."""
    parts = ANCHOR.split(text)[1:]
    named = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {given or anchor_of(heading): below for given, heading, below in named}


def spans(text: str) -> set[str]:
    """Return what is set in code, without its line breaks."""
    return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)}


def commands(text: str) -> set[str]:
    return {span for span in spans(text) if span.startswith(("orchestrator ", "kafka-", "kubectl "))}


def metrics(text: str) -> set[str]:
    return set(re.findall(r"\b(?:orchestrator|outbox)_[a-z_]+\b", text))


def settings(text: str) -> set[str]:
    """Return the variables of ours that a text names."""
    known = {field.name.upper() for field in fields(Settings)} | {"KAFKA_BOOTSTRAP_SERVERS"}
    return {word for word in re.findall(r"\b[A-Z][A-Z_]{3,}\b", text) if word in known} | set(
        re.findall(r"\bKAFKA_CONFIG_[A-Z_]*", text)
    )


def table(text: str, head: str) -> list[tuple[str, ...]]:
    """Return the rows below a table's head."""
    rows = re.search(rf"^\| {head} \|.*\n\|[-|]*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert rows, head
    return [tuple(map(str.strip, re.split(r"(?<!\\)\|", row)[1:-1])) for row in rows[1].splitlines()]


@pytest.mark.parametrize("name", PAGES)
def test_each_page_leads_to_the_other_language(name: str) -> None:
    file = Path(name).name
    assert page(f"{name}.md").startswith(f"**English** | [Русский]({file}.ru.md)\n\n# ")
    assert page(f"{name}.ru.md").startswith(f"[English]({file}.md) | **Русский**\n\n# ")


RUNBOOK, RUSSIAN_RUNBOOK = sections(page("docs/runbook.md")), sections(page("docs/runbook.ru.md"))


def test_both_runbooks_have_the_same_anchors() -> None:
    assert list(RUNBOOK) == list(RUSSIAN_RUNBOOK)


@pytest.mark.parametrize("section", RUNBOOK)
def test_a_section_of_both_runbooks_names_the_same(section: str) -> None:
    english, russian = RUNBOOK[section], RUSSIAN_RUNBOOK[section]
    for found in (commands, metrics, settings):
        assert found(russian) == found(english)
    assert spans(english) <= spans(russian)
    links = [set(re.findall(r"\]\(([^)]*)\)", text)) for text in (english, russian)]
    assert links[0] == links[1]
    parts = [len(re.findall(r"^- \*\*", text, re.MULTILINE)) for text in (english, russian)]
    assert parts[0] == parts[1]
    tables = [re.findall(r"^\| `([^`]*)`", text, re.MULTILINE) for text in (english, russian)]
    assert tables[0] == tables[1]


README, RUSSIAN = page("README.md"), page("README.ru.md")


def test_the_russian_readme_has_the_platforms_outline() -> None:
    assert re.findall(r"^## (.*)", RUSSIAN, re.MULTILINE) == [
        "Быстрый старт",
        "Docker",
        "Архитектура",
        "База данных",
        "Kafka-топики",
        "Переменные окружения",
        "Логирование",
        "Troubleshooting",
        "Примечания",
    ]


def test_both_readmes_have_the_same_settings_with_the_same_defaults() -> None:
    english = [row[:2] for row in table(README, "variable")]
    russian = [row[:2] for row in table(RUSSIAN, "переменная")][-len(english) :]
    words = {
        "required": "обязательна",
        "the first of the search_path": "первая из search_path",
        "none": "нет",
    }
    assert [(name, words.get(default, default)) for name, default in english] == russian
    assert f"`{DEFAULT_SCHEMES}`" in [default for _, default in english]


def test_both_readmes_have_the_same_metrics_and_commands() -> None:
    named = [[row[0] for row in table(text, head)] for text, head in METRICS]
    assert named[0] == named[1]
    listed = [{row[0] for row in table(text, head)} for text, head in COMMANDS]
    assert listed[0] == listed[1]


METRICS = ((README, "metric"), (RUSSIAN, "метрика"))
COMMANDS = ((README, "command"), (RUSSIAN, "команда"))


def test_both_pages_for_the_platform_name_the_same() -> None:
    english, russian = page("docs/platform.md"), page("docs/platform.ru.md")
    assert spans(english) == spans(russian)


@pytest.mark.parametrize("name", PAGES)
def test_each_link_of_a_russian_page_has_a_target(name: str) -> None:
    text = page(f"{name}.ru.md")
    links = [link for link in re.findall(r"\]\(([^)]*)\)", text) if "://" not in link]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / f"{name}.ru.md"
        assert target.exists(), link
        assert not anchor or anchor in sections(target.read_text()), link
