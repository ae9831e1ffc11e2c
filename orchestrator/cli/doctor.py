"""`doctor`: a line for each check."""

import argparse

from orchestrator.cli.session import load_settings_quietly
from orchestrator.cli.terminal import print_json, print_lines
from orchestrator.operations.doctor import runner
from orchestrator.operations.doctor.check import Finding


def print_checks(options: argparse.Namespace) -> int:
    """Run all checks; print each finding as it comes."""
    findings = []
    for finding in runner.run_all_checks(load_settings_quietly()):
        findings.append(finding)
        if not options.json:
            print_lines([render_finding(finding)])
    if options.json:
        print_json([finding._asdict() for finding in findings])
    return runner.exit_code(findings)


def render_finding(finding: Finding) -> str:
    """Return a finding as one line for an operator."""
    return f"{finding.state:<11} {finding.check}: {finding.text}"
