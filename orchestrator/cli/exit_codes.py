"""The exit codes of all commands. Imports nothing: a health check needs them every few seconds."""

OK, CHECK_FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
EXIT_CODES = "exit code: 0 ok, 1 a check failed, 2 usage or settings, 3 a server is unreachable"
