"""`doctor`: a line for each check."""

import argparse

from orchestrator.cli.session import load_settings_quietly
from orchestrator.cli.terminal import print_json, print_lines
from orchestrator.operations.doctor import runner


def run_checks(options: argparse.Namespace) -> int:
    """Run all checks; print each finding as it comes."""
    findings = []
    for finding in runner.examine(load_settings_quietly()):
        findings.append(finding)
        if not options.json:
            print_lines([runner.as_text(finding)])
    if options.json:
        print_json([finding._asdict() for finding in findings])
    return runner.exit_code(findings)
