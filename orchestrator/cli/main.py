"""The command line. Data goes to stdout, everything else to stderr."""

import os
import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from orchestrator.cli.exit_codes import CHECK_FAILED, USAGE
from orchestrator.cli.parser import new_parser
from orchestrator.cli.terminal import UsageError, print_error
from orchestrator.config.environment import SettingsError
from orchestrator.observability import logs


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code.

    An error that an operator can put right becomes one line. Raises SystemExit for --help and for wrong
    usage, before any command is imported.
    """
    options = new_parser().parse_args(arguments)
    logs.configure_logging("INFO", None, client_level="CRITICAL")
    try:
        code: int = resolve_name(options.command)(options)
        sys.stdout.flush()
    except UsageError as error:
        return print_error(USAGE, str(error))
    except SettingsError as error:
        return print_error(USAGE, "settings:", *error.faults)
    except KeyboardInterrupt:
        return print_error(CHECK_FAILED, "interrupted")
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CHECK_FAILED
    except Exception as error:
        from orchestrator.cli.known_errors import explain_error

        if (explained := explain_error(error)) is None:
            raise
        code, *lines = explained
        return print_error(code, *lines)
    return code
