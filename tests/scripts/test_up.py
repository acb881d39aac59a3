"""scripts/up.py: what a mesh finds before it starts."""

import socket

import pytest

from broker.config import Settings
from scripts.up import ports_taken


def test_free_ports_are_no_hindrance() -> None:
    settings = Settings(broker_port=0, controller_port=0, frontend_port=0)
    assert ports_taken(settings, ["broker", "controller", "frontend", "gpu_worker"]) == ""


@pytest.mark.parametrize("processes", [["broker", "gpu_worker", "frontend.1", "frontend.2"], ["mesh", "gpu_worker"]])
def test_every_port_that_another_mesh_holds_is_told_with_its_setting(processes: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker, socket.create_server(("127.0.0.1", 0)) as frontend:
        ports = [sock.getsockname()[1] for sock in (broker, frontend)]
        settings = Settings(broker_port=ports[0], controller_port=0, frontend_port=ports[1])
        faults = ports_taken(settings, processes).splitlines()
    assert len(faults) == 2
    for fault, port, setting in zip(faults, ports, ("GEARMESH_BROKER_PORT", "GEARMESH_FRONTEND_PORT"), strict=True):
        assert f"tcp://127.0.0.1:{port}" in fault
        assert setting in fault


def test_the_port_of_a_service_that_does_not_run_here_is_nobodys_business() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        settings = Settings(broker_port=broker.getsockname()[1], controller_port=0, frontend_port=0)
        assert ports_taken(settings, ["gpu_worker", "frontend"]) == ""
