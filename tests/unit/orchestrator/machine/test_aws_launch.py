"""Test cluster.yaml on a simulated AWS: the bootstrap of Ray and the instances it starts."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

boto3 = pytest.importorskip("boto3", reason="the AWS side of cluster.yaml needs boto3")
moto = pytest.importorskip(
    "moto", reason="the AWS side of cluster.yaml needs moto, a stand-in for AWS"
)
aws = importlib.import_module("ray.autoscaler._private.aws.config")
AWSNodeProvider = importlib.import_module(
    "ray.autoscaler._private.aws.node_provider"
).AWSNodeProvider

REPOSITORY = Path(__file__).parents[4]
REGION = "us-east-1"
RAY_TAGS = {"ray-node-type": "worker", "ray-node-name": "w"}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Return a simulated account with the security group and instance profiles of docs/cluster.md."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(name, "testing")
        patch.setenv("HOME", str(home))
        ec2 = boto3.client("ec2", REGION)
        iam = boto3.client("iam", REGION)
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="mine", Description="d", VpcId=vpc)["GroupId"]
        for name in ("isweep-head", "isweep-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        yield {"ec2": ec2, "iam": iam, "group": group, "image": image}


@pytest.fixture(scope="module")
def bootstrapped(account: dict[str, Any]) -> dict[str, Any]:
    """Return the launch file after the steps of `ray up` that come before the first instance."""
    text = (REPOSITORY / "cluster.yaml").read_text(encoding="utf-8")
    text = text.replace("ami-CHANGE", account["image"]).replace("sg-CHANGE", account["group"])
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    config = AWSNodeProvider.fillout_available_node_types_resources(copy.deepcopy(config))
    result: dict[str, Any] = aws.bootstrap_aws(config)
    return result


@pytest.mark.long
def test_ray_creates_no_role_and_no_group_and_each_node_has_its_profile(account, bootstrapped):
    assert account["iam"].list_roles()["Roles"] == []
    groups = account["ec2"].describe_security_groups()["SecurityGroups"]
    rules = [rule for group in groups for rule in group["IpPermissions"]]
    assert not [rule for rule in rules if {"CidrIp": "0.0.0.0/0"} in rule.get("IpRanges", ())]
    for name, kind in bootstrapped["available_node_types"].items():
        node = kind["node_config"]
        role = "head" if name == "head" else "worker"
        assert node["SecurityGroupIds"] == [account["group"]]
        assert node["IamInstanceProfile"] == {"Name": f"isweep-{role}"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "market"), [("gpu_worker", "spot"), ("gpu_worker_on_demand", None)]
)
def test_workers_start_with_their_market_and_are_removed_when_ended(
    account, bootstrapped, kind, market
):
    provider = AWSNodeProvider(bootstrapped["provider"], bootstrapped["cluster_name"])
    node_config = bootstrapped["available_node_types"][kind]["node_config"]
    provider.create_node(node_config, {**RAY_TAGS, "ray-user-node-type": kind}, 1)
    nodes = provider.non_terminated_nodes({})
    (reservation,) = account["ec2"].describe_instances(InstanceIds=nodes)["Reservations"]
    (instance,) = reservation["Instances"]
    assert (instance.get("InstanceLifecycle"), instance["InstanceType"]) == (market, "g6.4xlarge")
    # The policy of the head ends only instances with this tag.
    assert {"Key": "ray-cluster-name", "Value": "isweep"} in instance["Tags"]
    provider.terminate_nodes(nodes)
    assert provider.non_terminated_nodes({}) == []
    volumes = account["ec2"].describe_volumes()["Volumes"]
    assert [volume["VolumeId"] for volume in volumes if volume["Attachments"]] == []
