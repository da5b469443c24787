"""The agent's configuration as the roll-out writes it, by where the broker's certificate comes from."""

import json
from typing import Any
from urllib.parse import quote

import jinja2
import pytest
import yaml

from aetherscale_agent.config import AgentConfig, load_config

from .conftest import ANSIBLE

TLS = "/fleet/secrets/tls"
OWN = {"aetherscale_tls_cert_file": "/own/broker.pem", "aetherscale_tls_key_file": "/own/broker.pem"}
NO_OWN = {"aetherscale_tls_cert_file": "", "aetherscale_tls_ca_file": ""}


@pytest.fixture
def written(fleet, tmp_path):
    """What an agent reads of the file that it is given with these variables."""

    def write(**variables: Any) -> AgentConfig:
        environment = jinja2.Environment(autoescape=False, trim_blocks=True)  # no HTML
        environment.filters |= fleet.FilterModule().filters()
        environment.filters |= {"to_json": json.dumps, "urlencode": lambda text: quote(text, safe="")}
        ours = yaml.safe_load((ANSIBLE / "roles/aetherscale/vars/main.yml").read_text())
        given: dict[str, Any] = {
            "ansible_managed": "by Ansible", "inventory_hostname": "h1", "groups": {"compute": ["h2", "h1"]},
            "_aetherscale_play": False, "_aetherscale_scheme": "amqps", "_aetherscale_vhost": "aetherscale",
            "_aetherscale_bridge": "aetherscale0", "_aetherscale_client_certificates": False,
            "_aetherscale_tls_dir": TLS, "_agent_user": "agent-h1", "_agent_password": "secret",
            "_agent_ca": "/etc/aetherscale/ca.pem", "aetherscale_broker_address": "10.0.0.1",
            "aetherscale_broker_port": 5671,
        }  # fmt: skip
        for role in ("aetherscale", "agent"):
            defaults = yaml.safe_load((ANSIBLE / f"roles/{role}/defaults/main.yml").read_text())
            given = defaults | given
        given |= variables
        given["_aetherscale_ca_source"] = environment.from_string(ours["_aetherscale_ca_source"]).render(given).strip()
        template = (ANSIBLE / "roles/agent/templates/agent.toml.j2").read_text()
        file = tmp_path / "agent.toml"
        file.write_text(environment.from_string(template).render(given))
        return load_config(file, {})

    return write


def test_a_certificate_of_ones_own_that_the_machines_know_anyway(written):
    broker = written(**OWN, aetherscale_tls_ca_file="").broker
    assert (broker.url, broker.ca_file) == ("amqps://agent-h1@10.0.0.1:5671/aetherscale", None)


@pytest.mark.parametrize("given", [NO_OWN, OWN | {"aetherscale_tls_ca_file": "/own/root.pem"}])
def test_a_ca_that_only_agents_know(written, given):
    config = written(**given)
    assert (config.fleet, config.broker.ca_file) == (["h1", "h2"], "/etc/aetherscale/ca.pem")
