"""The kubelet's own table of environment variables."""

from __future__ import annotations

import pytest
from lightkube.resources.core_v1 import Service

from k8snet.controllers.service_env import from_services
from tests.conformance.conftest import read

CASE = read("env/from_services.json")


@pytest.mark.skipif(CASE is None, reason="no conformance data; K8SNET_CONFORMANCE names the folder")
def test_the_variables_of_services_are_the_kubelets_in_name_value_and_order():
    services = [Service.from_dict(one) for one in CASE["services"]]
    assert from_services(services) == [(one["name"], one["value"]) for one in CASE["expected"]]
