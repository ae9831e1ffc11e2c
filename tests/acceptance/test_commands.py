"""The commands as an operator and containers run them: effects, output and exit codes."""

import json
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from threading import Thread
from uuid import UUID, uuid4

import msgspec
import psutil  # type: ignore[import-untyped]
import pytest
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry
from shtab import SUPPORTED_SHELLS

from orchestrator.cli.main import run
from orchestrator.cli.parser import SHELLS, new_parser
from orchestrator.embedded import Servers
from orchestrator.embedded.server import free_port
from orchestrator.observability.health import Health
from orchestrator.observability.http import serve_http
from orchestrator.observability.metrics import release
from testkit.empty_installation import bare_system, end_all, run_command, run_in_process
from testkit.eventually import eventually
from testkit.system import INHERITED, Running, System, delete_topics, topics_of
from testkit.terminal import on_terminal

COMMANDS = (
    "consumer",
    "relay",
    "run",
    "setup",
    "migrate",
    "healthcheck",
    "submit",
    "status",
    "doctor",
    "explain",
    "audit",
    "repair",
    "dlq",
    "parked",
    "waiting",
    "history",
    "completion",
    "demo",
)
URL = "rtsp://user:pw@camera/1"
HOST = "127.0.0.1"


@pytest.fixture
def bare(servers: Servers, tmp_path: Path) -> Iterator[System]:
    with bare_system(servers, tmp_path) as system:
        yield system


@pytest.fixture
def by_default(bare: System) -> Iterator[System]:
    """An empty database and the two required settings: all names are the defaults."""
    required = ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS")
    system = System({name: bare.environ[name] for name in required}, bare.directory)
    remove_topics(system)
    yield system
    end_all(system)
    remove_topics(system)


def remove_topics(system: System) -> None:
    """Delete its topics and wait until they are gone: others may have left records in them."""
    admin, names = AdminClient(dict(system.settings.kafka)), set(topics_of(system))
    delete_topics(system)
    eventually(lambda: not names & admin.list_topics(timeout=10).topics.keys())


def start_main(system: System) -> Running:
    """Start `python -m orchestrator.main`; `system.end()` ends it."""
    running = Running(["orchestrator.main"], system.environ, system.directory / "main.log")
    system._running.append(running)
    return running


def children_of(running: Running) -> dict[str, psutil.Process]:
    """Return the living consumer and relay by name; "not yet" until both run."""
    found = {child.cmdline()[-1]: child for child in psutil.Process(running.process.pid).children()}
    assert found.keys() == {"consumer", "relay"}, found
    return found


# ---- run ------------------------------------------------------------------------------------------


def test_main_needs_two_settings_and_survives_the_death_of_its_children(by_default: System) -> None:
    main = start_main(by_default)
    eventually(lambda: main.logged("topic created"))
    assert len(submit(by_default, "--count", "30")) == 30
    by_default.check_exactly_once(30)
    eventually(lambda: run_command(by_default.environ, "healthcheck").returncode == 0)
    killed = children_of(main)
    for child in killed.values():
        child.kill()
    submit(by_default, "--count", "30")
    by_default.check_exactly_once(60)
    assert not {child.pid for child in children_of(main).values()} & {c.pid for c in killed.values()}
    main.stop()
    assert not any(child.is_running() for child in killed.values())


def control_c(process: psutil.Process) -> None:
    """A terminal sends SIGINT to all processes of the foreground group."""
    for one in [process, *process.children()]:
        one.send_signal(signal.SIGINT)


@pytest.mark.xdist_group("measures")
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(control_c, id="Ctrl-C"),
        pytest.param(psutil.Process.terminate, id="SIGTERM"),
        pytest.param(lambda process: process.send_signal(signal.SIGINT), id="SIGINT"),
    ],
)
def test_main_stops_itself_and_its_children_on_a_signal(
    bare: System, ask: Callable[[psutil.Process], None]
) -> None:
    main = start_main(bare)
    children = eventually(lambda: children_of(main))
    eventually(lambda: main.logged("partitions assigned") and main.logged("lane active"))
    started = time.monotonic()
    ask(psutil.Process(main.process.pid))
    assert main.process.wait(60) == 0
    assert time.monotonic() - started < 5
    left = [name for name, child in children.items() if child.is_running()]
    assert not left, main.log.read_text()[-3000:]
    assert main.log.read_text().count('"process stopped"') == 3  # none had to be killed
    assert not main.logged("Traceback")


def test_main_stops_while_it_waits_for_the_servers(bare: System) -> None:
    bare.environ |= {"DATABASE_URL": f"postgresql://{HOST}:{free_port()}/x"}
    main = start_main(bare)
    eventually(lambda: main.logged("setup waiting"))
    main.stop()


@pytest.mark.parametrize("away", ["DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"])
def test_a_container_whose_setup_waits_is_healthy_and_says_what_it_waits_for(
    bare: System, away: str
) -> None:
    port = free_port()
    dead = {"DATABASE_URL": f"postgresql://{HOST}:{free_port()}/x"}
    dead |= {"KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{free_port()}"}
    bare.environ |= {"METRICS_PORT": str(port), away: dead[away]}
    main = start_main(bare)
    eventually(lambda: main.logged("setup waiting"))
    assert run_command(bare.environ, "healthcheck").returncode == 0
    waits = run_command(bare.environ, "healthcheck", "--ready")
    assert waits.returncode == 1
    assert json.loads(waits.stdout)["checks"]["setup"]
    main.stop()


STOPPED_AGAIN_AND_AGAIN = """
from orchestrator.__main__ import exit_now
from orchestrator.runtime.process import run_until_stopped

for number in range(60):
    assert run_until_stopped(lambda stop: (number or print("works", flush=True), stop.wait())) == 0
exit_now(0)
"""


def test_a_process_that_gets_many_signals_at_once_stops() -> None:
    command, deadline = [sys.executable, "-c", STOPPED_AGAIN_AND_AGAIN], time.monotonic() + 20
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
        process.kill()
    assert process.returncode == 0


@pytest.mark.parametrize("command", ["consumer", "relay", "run"])
def test_a_taken_metrics_port_is_named_and_is_a_fault_of_the_settings(
    bare: System, command: str
) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = bare.start(command, METRICS_PORT=port)
        assert refused.process.wait(60) == 2
    last = refused.log.read_text().splitlines()[-1]
    assert "METRICS_PORT" in last
    assert port in last
    assert not refused.logged("Traceback")


# ---- healthcheck ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "beside", "code"),
    [
        ("alive", None, 0),
        ("alive", "alive", 0),
        ("hangs", None, 1),
        ("alive", "hangs", 1),
        (None, None, 1),
    ],
)
def test_healthcheck_asks_the_process_and_the_relay_that_run_started_beside_it(
    own: str | None, beside: str | None, code: int
) -> None:
    port = free_port()
    with ExitStack() as serving:
        for number, state in ((port, own), (port + 1, beside)):
            if state:
                process = Health(stalled_s=-1.0)  # a loop that ticked once is stalled
                if state == "hangs":
                    process.tick("loop")
                process.beside = port + 1 if number == port else None
                serving.enter_context(serve_http(HOST, number, CollectorRegistry(), process))
        assert run_command({"METRICS_PORT": str(port)}, "healthcheck").returncode == code


@pytest.mark.parametrize("foreign", ["silent", "hangs", "no HTTP", "another path"])
def test_healthcheck_does_not_ask_another_program_on_the_port_above(foreign: str) -> None:
    port = free_port()
    hanging = Health(stalled_s=-1.0)
    hanging.tick("loop")
    with ExitStack() as serving:
        serving.enter_context(serve_http(HOST, port, CollectorRegistry(), Health()))
        match foreign:
            case "hangs":  # such as a relay of another installation
                serving.enter_context(serve_http(HOST, port + 1, CollectorRegistry(), hanging))
            case "silent":
                serving.enter_context(socket.create_server((HOST, port + 1)))
            case "no HTTP":
                serving.enter_context(answering(port + 1, b"SSH-2.0-OpenSSH_9.2\r\n"))
            case _:
                serving.enter_context(answering(port + 1, b"HTTP/1.0 404 Not Found\r\n\r\n"))
        checked = run_command({"METRICS_PORT": str(port)}, "healthcheck")
    assert (checked.returncode, checked.stdout) == (0, '{"stalled": []}\n')


@contextmanager
def answering(port: int, text: bytes) -> Iterator[None]:
    """Run a program that says the same to each client."""

    class Says(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(text)

    with socketserver.TCPServer((HOST, port), Says) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield
        server.shutdown()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6")
@pytest.mark.parametrize("host", ["::", "::1", "[::1]", "0.0.0.0"])
def test_healthcheck_finds_a_process_at_any_address(host: str) -> None:
    environ = {"METRICS_HOST": host}
    with serve_http(host.strip("[]"), 0, CollectorRegistry(), Health()) as port:
        assert run_command(environ | {"METRICS_PORT": str(port)}, "healthcheck").returncode == 0


def test_healthcheck_ready_prints_what_a_process_waits_for() -> None:
    trouble: dict[str, str | None] = {"lanes": "lane 3: refused: marker_ahead"}
    process = Health({"lanes": lambda: trouble["lanes"]})
    with serve_http(HOST, 0, CollectorRegistry(), process) as port:
        waits = run_command({"METRICS_PORT": str(port)}, "healthcheck", "--ready")
        assert waits.returncode == 1
        assert json.loads(waits.stdout) == {"ready": False, "checks": trouble}
        trouble["lanes"] = None
        assert run_command({"METRICS_PORT": str(port)}, "healthcheck", "--ready").returncode == 0


def test_healthcheck_gives_up_on_a_process_that_does_not_answer() -> None:
    with socket.create_server((HOST, 0)) as silent:
        port = str(silent.getsockname()[1])
        answered = run_command({"METRICS_PORT": port}, "healthcheck")
    assert answered.returncode == 1
    assert answered.stdout == f"no answer on port {port}: TimeoutError\n"


def test_healthcheck_asks_where_the_process_listens() -> None:
    other = "127.0.0.2"
    with serve_http(other, 0, CollectorRegistry(), Health()) as port:
        environ = {"METRICS_PORT": str(port), "METRICS_HOST": other}
        assert run_command(environ, "healthcheck").returncode == 0


def test_healthcheck_goes_through_no_proxy() -> None:
    with serve_http(HOST, 0, CollectorRegistry(), Health()) as port:
        proxy = {"http_proxy": f"http://{HOST}:{free_port()}", "no_proxy": ""}
        assert run_command(proxy | {"METRICS_PORT": str(port)}, "healthcheck").returncode == 0


def test_healthcheck_reports_an_invalid_port() -> None:
    refused = run_command({"METRICS_PORT": "tcp://10.0.0.1:9464"}, "healthcheck")
    assert refused.returncode == 2
    assert "METRICS_PORT must be a whole number" in refused.stderr


# ---- SIGTERM ------------------------------------------------------------------------------------

AS_PID_1 = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
CAN_UNSHARE = (
    shutil.which("unshare") and not subprocess.run([*AS_PID_1, "true"], capture_output=True).returncode
)


@contextmanager
def silent_servers() -> Iterator[dict[str, str]]:
    """Yield the addresses of a Postgres and a Kafka that take connections and never answer."""
    with socket.create_server((HOST, 0)) as postgres, socket.create_server((HOST, 0)) as kafka:
        yield {
            "DATABASE_URL": f"postgresql://user@{HOST}:{postgres.getsockname()[1]}/name",
            "KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{kafka.getsockname()[1]}",
        }


@pytest.mark.xdist_group("measures")
@pytest.mark.parametrize(
    "prefix", [[], pytest.param(AS_PID_1, marks=pytest.mark.skipif(not CAN_UNSHARE, reason="unshare"))]
)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        *(
            (command, 128 + signal.SIGTERM)
            for command in ("setup", "migrate", "status", "submit", "doctor")
        ),
        *((command, 0) for command in ("run", "consumer", "relay")),
    ],
)
def test_sigterm_ends_a_command_that_waits_also_as_pid_1(
    command: str, code: int, prefix: list[str], tmp_path: Path
) -> None:
    """As PID 1, in a container, a process without a handler of its own never gets it."""
    arguments = [command, "rtsp://camera/1"] if command == "submit" else [command]
    with silent_servers() as servers, (tmp_path / "log").open("wb") as log:
        environ = INHERITED | servers | {"METRICS_HOST": HOST, "METRICS_PORT": "0"}
        started = [*prefix, sys.executable, "-m", "orchestrator", *arguments]
        with subprocess.Popen(started, env=environ, stdout=log, stderr=log) as outer:
            process = psutil.Process(outer.pid)
            if prefix:
                outer_process = process
                process = eventually(lambda: outer_process.children()[:1])[0]
            eventually(lambda: process.net_connections(kind="tcp"), 60)  # it waits for a server
            began = time.monotonic()
            process.terminate()
            assert outer.wait(30) == code, (tmp_path / "log").read_text()
    assert time.monotonic() - began < 5


# ---- submit ---------------------------------------------------------------------------------------


def submit(system: System, *options: str) -> list[UUID]:
    """Run `submit`; return the scenarios on its stdout."""
    ran = run_command(system.environ, "submit", URL, *options)
    assert ran.returncode == 0, ran.stderr
    return [UUID(line) for line in ran.stdout.splitlines()]


def test_submit_prints_the_scenario_of_every_command_it_sent(system: System) -> None:
    scenarios = submit(system, "--count", "3")
    scenarios += submit(system, "--scenario", str(fixed := uuid4()), "--count", "2")
    scenarios += submit(system)
    assert len(set(scenarios)) == 5
    assert scenarios.count(fixed) == 2
    sent = [msgspec.json.decode(r.value() or b"") for r in system.read(system.settings.input_topic)]
    assert sorted(command["scenario_uuid"] for command in sent) == sorted(map(str, scenarios))
    assert {command["camera_url"] for command in sent} == {URL}


def test_submit_reads_camera_urls_from_stdin(system: System) -> None:
    urls = [f"rtsp://user:pw@camera/{number}" for number in range(3)]
    command = [sys.executable, "-m", "orchestrator", "submit", "-", "--count", "2"]
    environ = INHERITED | system.environ
    text = "\n".join(["", *urls, ""])
    ran = subprocess.run(command, env=environ, input=text, capture_output=True, text=True, check=True)
    assert len(ran.stdout.splitlines()) == 6
    sent = [msgspec.json.decode(r.value() or b"") for r in system.read(system.settings.input_topic)]
    assert sorted(command["camera_url"] for command in sent) == sorted(urls * 2)
    ran = subprocess.run(command, env=environ, input="\n", capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "no camera URL on stdin: write one a line" in ran.stderr


def test_submit_on_a_terminal_shows_how_far_it_is_and_how_to_follow(system: System) -> None:
    command = ("-m", "orchestrator", "submit", URL, "--count", "30", "--rate", "20")
    began = time.monotonic()
    said, code = on_terminal(*command, environ=system.environ)
    assert time.monotonic() - began > 29 / 20
    assert code == 0
    assert said.count("\n") == 1
    *figures, line = said.strip().split("\r")
    assert len(figures) > 3
    assert re.match(r"30 of 30 sent, [12]\d/s to ", line)
    (followed,) = re.findall(r"orchestrator explain (\S+)`", line)
    sent = [msgspec.json.decode(r.value() or b"") for r in system.read(system.settings.input_topic)]
    assert len(sent) == 30
    assert followed in {command["scenario_uuid"] for command in sent}


@pytest.mark.parametrize("command", [["submit", URL], ["audit"]], ids=" ".join)
def test_a_command_that_kafka_does_not_answer_says_one_line(system: System, command: list[str]) -> None:
    refused = run_command(system.environ | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, *command)
    assert refused.returncode == 3
    (line,) = refused.stderr.splitlines()
    assert line.startswith("orchestrator: ")


# ---- logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "begins"), [("json", '{"time": '), ("text", "")])
def test_a_warning_about_the_settings_has_their_log_format(form: str, begins: str) -> None:
    environ = {"LOG_FORMAT": form, "PROGRESS_TOPIC": "old", "DATABASE_URL": "postgresql://h/d"}
    ran = run_command(environ, "setup")  # KAFKA_BOOTSTRAP_SERVERS is missing
    assert ran.returncode == 2
    (line,) = [line for line in ran.stderr.splitlines() if "setting renamed" in line]
    assert line.startswith(begins)
    assert ("WARNING setting renamed setting=PROGRESS_TOPIC" in line) == (form == "text")


@pytest.mark.parametrize("command", ["setup", "consumer", "relay", "run", "status", "doctor", "submit"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OUTBOX_TIMINGS", "{"),
        ("OUTBOX_TIMINGS", '{"no_such_s": 1}'),
        ("KAFKA_BOOTSTRAP_SERVERS", "SASL_SSL://kafka:9093"),
        ("KAFKA_CONFIG_MAX_POLL_INTERVAL_MS", "5000"),
    ],
)
def test_settings_that_would_wait_without_end_are_exit_code_2_at_once(
    command: str, name: str, value: str
) -> None:
    if command == "submit" and name == "OUTBOX_TIMINGS":
        pytest.skip("it has none")
    environ = {"DATABASE_URL": "postgresql://h/d", "KAFKA_BOOTSTRAP_SERVERS": "h:1", name: value}
    ran = run_in_process(environ, command, *([URL] if command == "submit" else []))
    assert ran.returncode == 2
    assert name in ran.stderr
    assert "Traceback" not in ran.stderr


# ---- exit codes and help --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["submit"],
        ["submit", URL, "--count", "0"],
        ["submit", URL, "--count", "many"],
        ["submit", URL, "--scenario", "no-uuid"],
        ["migrate", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 2
    assert "usage: orchestrator" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["statu"], "there is no 'statu': did you mean status?"),
        (["dlq", "lst"], "there is no 'lst': did you mean list?"),
        (["repair", "x"], "there is no 'x': choose from lane, partition"),
    ],
)
def test_a_word_that_is_nearly_right_is_corrected(
    arguments: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(arguments)
    assert advice in capsys.readouterr().err


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"orchestrator {release()}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_ends_a_process_of_each_command(command: str) -> None:
    refused = run_command({}, command, "--no-such-option")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("usage: orchestrator")


@pytest.mark.parametrize(
    "arguments",
    [[URL], ["explain", URL], ["dlq", "show", URL], ["status", URL], ["submit", URL, "--count", URL]],
    ids=lambda arguments: " ".join(arguments).replace(URL, "URL"),
)
def test_wrong_usage_does_not_repeat_a_password(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(arguments)
    said = capsys.readouterr().err
    assert "error: " in said
    assert "user:pw" not in said


def test_a_command_whose_output_is_closed_ends_quietly() -> None:
    command = [sys.executable, "-m", "orchestrator", "completion", "bash"]
    with subprocess.Popen(
        command, env=INHERITED, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # before it writes: an interpreter takes longer to start
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


@pytest.mark.parametrize("command", ["consumer", "relay", "run", "setup", "migrate"])
def test_missing_settings_are_exit_code_2_and_all_named(command: str) -> None:
    refused = run_command({"DATABASE_URL": "", "KAFKA_BOOTSTRAP_SERVERS": "", "LANES": "x"}, command)
    assert (refused.returncode, refused.stdout) == (2, "")
    for name in ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "LANES"):
        assert refused.stderr.count(f"\n{name} ") == 1


def test_submit_without_settings_is_exit_code_2(tmp_path: Path) -> None:
    refused = run_command({"KAFKA_BOOTSTRAP_SERVERS": ""}, "submit", URL, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "\nKAFKA_BOOTSTRAP_SERVERS " in refused.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: orchestrator {command}")
    assert re.search(r"\n\n[A-Z][^\n]+", said), "what it does"
    assert f"orchestrator {command}" in said.partition("\nexample: ")[2]


def subcommands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """Return the parser of each command."""
    assert parser._subparsers
    (action,) = parser._subparsers._group_actions
    assert isinstance(action.choices, dict)
    return action.choices


def test_every_command_is_a_function_that_takes_the_options() -> None:
    commands = subcommands(new_parser())
    assert commands.keys() == set(COMMANDS)
    for parser in commands.values():
        assert list(signature(resolve_name(parser.get_default("command"))).parameters) in (
            ["options"],
            ["_options"],
        )


WITHOUT_CLIENTS = """
import sys
from orchestrator.cli.main import run

try:
    run(sys.argv[1:])
except SystemExit:
    pass
found = {"confluent_kafka", "psycopg"} & sys.modules.keys()
assert not found, found
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["status", "--help"],
        ["submit"],
        ["completion", "bash"],
        ["healthcheck"],
        ["healthcheck", "--ready"],
    ],
    ids=" ".join,
)
def test_a_command_that_asks_no_server_imports_no_client_of_one(arguments: list[str]) -> None:
    environ = INHERITED | {"METRICS_PORT": str(free_port())}
    command = [sys.executable, "-c", WITHOUT_CLIENTS, *arguments]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=40, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_knows_every_command(shell: str) -> None:
    script = run_command({}, "completion", shell)
    assert (script.returncode, script.stderr) == (0, "")
    assert [command for command in COMMANDS if command not in script.stdout] == []


def test_the_completion_is_offered_for_every_shell_that_shtab_supports() -> None:
    assert list(SHELLS) == SUPPORTED_SHELLS


def test_the_help_lists_every_command_and_the_exit_codes() -> None:
    said = run_command({}, "--help")
    assert (said.returncode, said.stderr) == (0, "")
    assert "exit code: 0 ok" in said.stdout
    listed = [line.split()[0] for line in said.stdout.splitlines() if line.startswith("    ")]
    assert set(COMMANDS) <= set(listed)
