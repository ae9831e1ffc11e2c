"""`doctor`: a line for each check, the most serious first."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.cli import screen
from orchestrator.cli.session import load_settings_quietly
from orchestrator.cli.terminal import print_json, print_lines
from orchestrator.operations.doctor import runner
from orchestrator.operations.doctor.check import CheckState, Finding

MOST_SERIOUS_FIRST: Sequence[CheckState] = ("unreachable", "failed", "warning", "skipped", "ok")


def print_checks(options: argparse.Namespace) -> int:
    """Run all checks; print the findings, or on a terminal only those that are not ok."""
    settings = load_settings_quietly()
    shows_progress = sys.stderr.isatty()
    findings = []
    for finding in runner.run_all_checks(settings):
        findings.append(finding)
        if shows_progress:
            print(f"\r{len(findings)} of {len(runner.CHECKS)} checks", end="", file=sys.stderr)
    if shows_progress:
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    if options.json:
        print_json([finding._asdict() for finding in findings])
    else:
        print_lines(render_findings(findings, options.all or not screen.is_terminal()))
    return runner.exit_code(findings)


def render_findings(findings: Sequence[Finding], every: bool) -> Iterator[str]:
    """Yield a line for each finding, most serious first, and their number. every: also what is ok."""
    by_severity = sorted(findings, key=lambda one: MOST_SERIOUS_FIRST.index(one.state))
    shown = [one for one in by_severity if every or one.state != "ok"]
    counts = Counter(one.state for one in findings)
    summary = ", ".join(
        f"{counts[state]} {state}" for state in reversed(MOST_SERIOUS_FIRST) if counts[state]
    )
    if counts["ok"] == len(findings):
        yield f"ok          all {len(findings)} checks"
    for one in shown:
        yield render_finding(one)
    hidden = "; --all shows what is ok, too" if len(shown) < len(findings) else ""
    yield f"{summary}{hidden}"


def render_finding(finding: Finding) -> str:
    """Return a finding as one line for an operator."""
    return f"{finding.state:<11} {finding.check}: {finding.text}"
