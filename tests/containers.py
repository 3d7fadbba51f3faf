"""The broker in a Docker container, by testcontainers. `scripts/docker-engine` makes its image.

Not testcontainers' own `NatsContainer`: it waits in a way that testcontainers has deprecated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

IMAGE: Final = "mesh-nats:test"
PORT: Final = 4222


@contextmanager
def nats_container() -> Iterator[str]:
    """Run a broker, with the configuration of the embedded one, and give its address."""
    is_ready = LogMessageWaitStrategy("Server is ready").with_startup_timeout(30)
    with DockerContainer(IMAGE).with_exposed_ports(PORT).waiting_for(is_ready) as container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(PORT)
        yield f"nats://{host}:{port}"
