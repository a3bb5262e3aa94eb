"""What is told of ENIs, and when, through boto3 and moto in this process."""

import json
import os
import pathlib
import socket
import tempfile

from test_interfaces import Account

from veni_ec2_semantics import feed


class Feed(Account):
    def setUp(self):
        path = str(pathlib.Path(tempfile.mkdtemp()) / "feed.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        os.environ["VENI_EC2_FEED"] = path
        self.addCleanup(os.environ.pop, "VENI_EC2_FEED")
        feed.open_socket()
        self.addCleanup(self.close)
        self.told, _ = listener.accept()
        self.told.settimeout(20)
        listener.close()
        self.lines = self.told.makefile()
        super().setUp()
        self.primary = self.next()["interface"]

    def close(self):
        feed._feed.close()
        feed._feed = None
        feed._told.clear()
        self.lines.close()
        self.told.close()

    def next(self):
        return json.loads(self.lines.readline())

    def attach(self, eni, index=1):
        return self.ec2.attach_network_interface(
            NetworkInterfaceId=eni, InstanceId=self.instance, DeviceIndex=index
        )["AttachmentId"]

    def test_an_instance_comes_with_its_primary_eni(self):
        self.assertEqual(self.primary["attachment"]["instance_id"], self.instance)
        self.assertEqual(self.primary["attachment"]["device_index"], 0)
        self.assertEqual(self.primary["status"], "in_use")
        self.assertEqual(self.primary["secondary_addresses"], [])

    def test_an_eni_is_told_at_each_step_of_its_life(self):
        tags = [{"ResourceType": "network-interface", "Tags": [{"Key": "k", "Value": "v"}]}]
        eni = self.create(Description="mine", SecondaryPrivateIpAddressCount=2, TagSpecifications=tags)["NetworkInterfaceId"]
        made = self.next()["interface"]
        self.assertEqual((made["id"], made["status"], made["attachment"]), (eni, "available", None))
        self.assertEqual((made["description"], made["tags"], len(made["secondary_addresses"])), ("mine", {"k": "v"}, 2))
        attachment = self.attach(eni)
        self.assertEqual(self.next()["interface"]["attachment"]["device_index"], 1)
        self.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1)
        held = self.next()["interface"]["secondary_addresses"]
        self.assertEqual(len(held), 3)
        self.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=held[:1])
        self.assertEqual(self.next()["interface"]["secondary_addresses"], held[1:])
        self.ec2.detach_network_interface(AttachmentId=attachment)
        self.assertIsNone(self.next()["interface"]["attachment"])
        self.ec2.delete_network_interface(NetworkInterfaceId=eni)
        self.assertEqual(self.next(), {"gone": eni})

    def test_what_is_only_looked_at_is_not_told(self):
        self.ec2.describe_network_interfaces()
        self.ec2.describe_subnets()
        eni = self.create()["NetworkInterfaceId"]
        self.assertEqual(self.next()["interface"]["id"], eni)

    def test_an_attachment_that_takes_time_is_told_when_it_is_complete_without_a_call(self):
        self.ask(delays={"attach_ms": 100, "detach_ms": 100})
        eni = self.create()["NetworkInterfaceId"]
        self.next()
        attachment = self.attach(eni)
        told = [self.next()["interface"] for _ in range(2)]
        self.assertEqual([state["status"] for state in told], ["attaching", "in_use"])
        self.ec2.detach_network_interface(AttachmentId=attachment)
        told = [self.next()["interface"] for _ in range(2)]
        self.assertEqual([state["status"] for state in told], ["detaching", "available"])


del Account
