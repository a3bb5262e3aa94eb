"""The semantics, through boto3 and moto in this process: no server, no network.

    .tools/localstack/bin/python -m unittest discover -s localstack-tests/semantics/tests
"""

import json
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws

import veni_ec2_semantics

ZONE = "eu-central-1a"


class Account(unittest.TestCase):
    """A VPC with one /26 subnet and an m5.large (3 ENIs, 10 addresses each)."""

    def setUp(self):
        veni_ec2_semantics.apply()
        self.control = pathlib.Path(tempfile.mkdtemp()) / "control.json"
        os.environ.update(
            AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", VENI_EC2_CONTROL=str(self.control)
        )
        self.aws = mock_aws()
        self.aws.start()
        self.addCleanup(self.aws.stop)
        config = Config(retries={"total_max_attempts": 1})
        self.ec2 = boto3.client("ec2", region_name="eu-central-1", config=config)
        self.vpc = self.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        self.group = self.ec2.create_security_group(GroupName="g", Description="g", VpcId=self.vpc)["GroupId"]
        self.subnet = self.make_subnet(self.vpc, "10.0.1.0/26")
        self.instance = self.run_instance("m5.large")

    def make_subnet(self, vpc, cidr, zone=ZONE):
        return self.ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=zone)["Subnet"]["SubnetId"]

    def run_instance(self, instance_type):
        answer = self.ec2.run_instances(
            ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType=instance_type, SubnetId=self.subnet
        )
        return answer["Instances"][0]["InstanceId"]

    def ask(self, **content):
        staged = self.control.with_suffix(".new")
        staged.write_text(json.dumps(content))
        staged.rename(self.control)

    def create(self, **parameters):
        return self.ec2.create_network_interface(SubnetId=self.subnet, **parameters)["NetworkInterface"]

    def attach(self, eni, index, **parameters):
        return self.ec2.attach_network_interface(
            NetworkInterfaceId=eni["NetworkInterfaceId"], InstanceId=self.instance, DeviceIndex=index, **parameters
        )["AttachmentId"]

    def describe(self, eni):
        return self.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni["NetworkInterfaceId"]])[
            "NetworkInterfaces"
        ][0]

    def free(self):
        return self.ec2.describe_subnets(SubnetIds=[self.subnet])["Subnets"][0]["AvailableIpAddressCount"]

    def refused(self, code, call, *args, **kwargs):
        with self.assertRaises(ClientError) as caught:
            call(*args, **kwargs)
        self.assertEqual(caught.exception.response["Error"]["Code"], code)


class Addresses(Account):
    def test_a_subnet_gives_each_address_once_and_then_refuses(self):
        # 64 - 5 reserved - the instance's own.
        self.assertEqual(self.free(), 58)
        eni = self.create(SecondaryPrivateIpAddressCount=57)
        held = [a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"]]
        self.assertEqual(len(set(held)), 58)
        self.assertFalse({f"10.0.1.{n}" for n in (0, 1, 2, 3, 63)} & set(held))
        self.assertEqual(self.free(), 0)
        self.refused("InsufficientFreeAddressesInSubnet", self.create)
        self.ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])
        self.assertEqual(self.free(), 58)

    def test_assigning_answers_with_the_new_addresses_and_stops_at_the_types_limit(self):
        eni = self.create(SecondaryPrivateIpAddressCount=2)
        self.attach(eni, 1)
        answer = self.ec2.assign_private_ip_addresses(
            NetworkInterfaceId=eni["NetworkInterfaceId"], SecondaryPrivateIpAddressCount=7
        )["AssignedPrivateIpAddresses"]
        old = {a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"]}
        self.assertEqual(len({a["PrivateIpAddress"] for a in answer} - old), 7)
        self.refused(
            "PrivateIpAddressLimitExceeded",
            self.ec2.assign_private_ip_addresses,
            NetworkInterfaceId=eni["NetworkInterfaceId"],
            SecondaryPrivateIpAddressCount=1,
        )

    def test_unassigning_is_all_or_nothing_and_never_the_primary(self):
        eni = self.create(SecondaryPrivateIpAddressCount=1)
        primary, secondary = [a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"]]
        unassign = self.ec2.unassign_private_ip_addresses
        for wrong in ([primary], [secondary, "10.0.1.77"]):
            self.refused(
                "InvalidParameterValue",
                unassign,
                NetworkInterfaceId=eni["NetworkInterfaceId"],
                PrivateIpAddresses=wrong,
            )
        self.assertEqual(len(self.describe(eni)["PrivateIpAddresses"]), 2)
        unassign(NetworkInterfaceId=eni["NetworkInterfaceId"], PrivateIpAddresses=[secondary])
        self.assertEqual(len(self.describe(eni)["PrivateIpAddresses"]), 1)

    def test_prefixes_are_whole_free_blocks(self):
        # Of the 16 blocks the reserved addresses spoil two, and the ENI's own address at most one more.
        self.subnet = self.make_subnet(self.vpc, "10.0.2.0/24")
        eni = self.create(Ipv4PrefixCount=1)
        (prefix,) = [p["Ipv4Prefix"] for p in eni["Ipv4Prefixes"]]
        self.assertTrue(prefix.endswith("/28"))
        self.refused(
            "InsufficientCidrBlocks",
            self.ec2.assign_private_ip_addresses,
            NetworkInterfaceId=eni["NetworkInterfaceId"],
            Ipv4PrefixCount=14,
        )
        self.assertEqual(self.describe(eni)["Ipv4Prefixes"], [{"Ipv4Prefix": prefix}])
        self.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni["NetworkInterfaceId"], Ipv4Prefixes=[prefix])
        self.assertEqual(self.describe(eni).get("Ipv4Prefixes", []), [])

    def test_named_addresses_must_be_free_and_inside(self):
        for address, code in (
            ("10.0.1.2", "InvalidParameterValue"),
            ("10.0.2.9", "InvalidParameterValue"),
            (self.create()["PrivateIpAddress"], "InvalidIPAddress.InUse"),
        ):
            self.refused(code, self.create, PrivateIpAddress=address)


class Lifecycle(Account):
    def test_a_mac_is_one(self):
        self.assertRegex(self.create()["MacAddress"], "^(02)(:[0-9a-f]{2}){5}$")

    def test_the_same_token_returns_the_same_interface(self):
        first = self.create(ClientToken="t", SecondaryPrivateIpAddressCount=3)
        again = self.create(ClientToken="t", SecondaryPrivateIpAddressCount=3)
        self.assertEqual(first["NetworkInterfaceId"], again["NetworkInterfaceId"])
        self.refused("IdempotentParameterMismatch", self.create, ClientToken="t", SecondaryPrivateIpAddressCount=4)

    def test_attaching_obeys_the_index_the_card_and_the_limit(self):
        first, second, third = self.create(), self.create(), self.create()
        self.attach(first, 1)
        self.refused("InvalidParameterValue", self.attach, first, 2)
        self.refused("InvalidParameterValue", self.attach, second, 1)
        self.refused("InvalidParameterValue", self.attach, second, 2, NetworkCardIndex=1)
        self.attach(second, 2)
        self.refused("AttachmentLimitExceeded", self.attach, third, 3)

    def test_a_second_card_has_indexes_of_its_own(self):
        self.instance = self.run_instance("p4d.24xlarge")
        self.attach(self.create(), 1)
        eni = self.create()
        self.attach(eni, 1, NetworkCardIndex=1)
        self.assertEqual(self.describe(eni)["Attachment"]["NetworkCardIndex"], 1)

    def test_attaching_and_detaching_take_the_time_asked_for(self):
        self.ask(delays={"attach_ms": 60_000, "detach_ms": 60_000})
        eni = self.create()
        attachment = self.attach(eni, 1)
        self.assertEqual(self.describe(eni)["Attachment"]["Status"], "attaching")
        self.refused("IncorrectState", self.ec2.detach_network_interface, AttachmentId=attachment)
        self.ask(delays={})
        done = self.create()
        attachment = self.attach(done, 2)
        self.assertEqual(self.describe(done)["Status"], "in-use")
        self.ask(delays={"detach_ms": 60_000})
        self.ec2.detach_network_interface(AttachmentId=attachment)
        self.assertEqual(self.describe(done)["Attachment"]["Status"], "detaching")
        self.refused(
            "InvalidParameterValue",
            self.ec2.delete_network_interface,
            NetworkInterfaceId=done["NetworkInterfaceId"],
        )

    def test_a_detached_interface_can_be_deleted_and_the_primary_not_detached(self):
        eni = self.create()
        self.ec2.detach_network_interface(AttachmentId=self.attach(eni, 1))
        self.assertEqual(self.describe(eni)["Status"], "available")
        self.ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])
        self.refused("InvalidNetworkInterfaceID.NotFound", self.describe, eni)
        instances = self.ec2.describe_instances(InstanceIds=[self.instance])["Reservations"][0]["Instances"]
        primary = instances[0]["NetworkInterfaces"][0]["Attachment"]
        self.assertTrue(primary["DeleteOnTermination"])
        self.refused("OperationNotPermitted", self.ec2.detach_network_interface, AttachmentId=primary["AttachmentId"])

    def test_modifying_replaces_groups_and_changes_the_attachment(self):
        eni = self.create()
        attachment = self.attach(eni, 1)
        modify = self.ec2.modify_network_interface_attribute
        modify(NetworkInterfaceId=eni["NetworkInterfaceId"], Groups=[self.group])
        modify(
            NetworkInterfaceId=eni["NetworkInterfaceId"],
            Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
        )
        seen = self.describe(eni)
        self.assertEqual([g["GroupId"] for g in seen["Groups"]], [self.group])
        self.assertTrue(seen["Attachment"]["DeleteOnTermination"])
        self.refused(
            "InvalidAttachmentID.NotFound",
            modify,
            NetworkInterfaceId=eni["NetworkInterfaceId"],
            Attachment={"AttachmentId": "eni-attach-0", "DeleteOnTermination": True},
        )

    def test_an_unknown_interface_cannot_be_tagged(self):
        self.refused(
            "InvalidNetworkInterfaceID.NotFound",
            self.ec2.create_tags,
            Resources=["eni-00000000000000000"],
            Tags=[{"Key": "k", "Value": "v"}],
        )

    def test_terminating_deletes_what_goes_with_the_instance_and_frees_the_rest(self):
        kept = self.create()
        self.attach(kept, 1)
        self.ec2.terminate_instances(InstanceIds=[self.instance])
        self.assertEqual(self.describe(kept)["Status"], "available")
        self.assertEqual(self.free(), 58)


class Describe(Account):
    def test_pages_hold_every_interface_once(self):
        made = {self.create()["NetworkInterfaceId"] for _ in range(7)}
        pages = self.ec2.get_paginator("describe_network_interfaces").paginate(
            Filters=[{"Name": "status", "Values": ["available"]}], PaginationConfig={"PageSize": 5}
        )
        pages = [[e["NetworkInterfaceId"] for e in page["NetworkInterfaces"]] for page in pages]
        self.assertEqual([len(page) for page in pages], [5, 2])
        self.assertEqual({eni for page in pages for eni in page}, made)

    def test_filters_see_the_index_and_secondary_addresses(self):
        eni = self.create(SecondaryPrivateIpAddressCount=1)
        self.attach(eni, 2)
        secondary = eni["PrivateIpAddresses"][1]["PrivateIpAddress"]
        for name, value in (("attachment.device-index", "2"), ("addresses.private-ip-address", secondary)):
            found = self.ec2.describe_network_interfaces(Filters=[{"Name": name, "Values": [value]}])
            self.assertEqual(
                [e["NetworkInterfaceId"] for e in found["NetworkInterfaces"]], [eni["NetworkInterfaceId"]], name
            )

    def test_a_new_interface_can_stay_invisible(self):
        self.ask(delays={"create_visible_ms": 60_000})
        eni = self.create()
        self.refused("InvalidNetworkInterfaceID.NotFound", self.describe, eni)
        found = self.ec2.describe_network_interfaces(Filters=[{"Name": "status", "Values": ["available"]}])
        self.assertEqual(found["NetworkInterfaces"], [])


class Faults(Account):
    def test_a_fault_before_has_no_effect_and_one_after_has_it(self):
        for when, effect in (("before", 0), ("after", 1)):
            before = self.free()
            fault = {"action": "CreateNetworkInterface", "when": when, "code": "InternalError", "status": 500}
            self.ask(faults=[fault])
            self.refused("InternalError", self.create)
            self.assertEqual(before - self.free(), effect, when)
            self.create()

    def test_a_fault_hits_as_often_as_asked_and_after_what_it_skips(self):
        self.ask(faults=[{"action": "*", "code": "RequestLimitExceeded", "skip": 1, "count": 2}])
        self.free()
        for _ in range(2):
            self.refused("RequestLimitExceeded", self.free)
        self.free()

    def test_a_fault_for_another_agent_passes(self):
        self.ask(faults=[{"action": "*", "agent": "app/other", "code": "InternalError", "count": -1}])
        self.assertEqual(self.free(), 58)


if __name__ == "__main__":
    unittest.main()
