"""The whole way of a command, by the real processes."""

from testkit.system import System


def test_every_command_becomes_one_deployed_worker_and_one_order(system: System) -> None:
    consumer, relay = system.start("consumer"), system.start("relay")
    scenarios = system.submit(1000)
    system.check_exactly_once(1000)
    assert {order.scenario_uuid for order in system.orders()} == set(scenarios)
    consumer.stop()
    relay.stop()
