"""Rules and prefix lists, through boto3 and moto in this process."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from test_interfaces import Account, ClientError


class SecurityGroupsTest(Account):
    def authorize(self, **permission):
        answer = self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[permission])
        return answer["SecurityGroupRules"][0]

    def by_group(self):
        return [{"Name": "group-id", "Values": [self.group]}]

    def test_rules_come_in_pages(self):
        for n in range(11):
            self.authorize(IpProtocol="tcp", FromPort=n, ToPort=n, IpRanges=[{"CidrIp": "10.0.0.0/8"}])
        pages, token = [], None
        while token != "":
            more = {"NextToken": token} if token else {}
            page = self.ec2.describe_security_group_rules(Filters=self.by_group(), MaxResults=5, **more)
            pages.append(page["SecurityGroupRules"])
            token = page.get("NextToken", "")
        self.assertEqual([len(page) for page in pages], [5, 5, 2])
        self.assertEqual(len({rule["SecurityGroupRuleId"] for page in pages for rule in page}), 12)

    def test_ports_of_a_protocol_without_ports_are_ignored(self):
        rule = self.authorize(IpProtocol="50", IpRanges=[{"CidrIp": "10.0.0.0/8"}])
        self.assertEqual((rule["IpProtocol"], rule["FromPort"], rule["ToPort"]), ("50", -1, -1))

    def test_icmpv6_has_its_name_and_a_rule_its_owner(self):
        rule = self.authorize(IpProtocol="58", FromPort=128, ToPort=0, Ipv6Ranges=[{"CidrIpv6": "::/0"}])
        self.assertEqual((rule["IpProtocol"], rule["FromPort"], rule["ToPort"]), ("icmpv6", 128, 0))
        self.assertEqual(rule["GroupOwnerId"], "123456789012")

    def test_entries_of_a_prefix_list_come_in_pages_and_versions(self):
        first = [{"Cidr": f"10.{n}.0.0/16"} for n in range(150)]
        made = self.ec2.create_managed_prefix_list(
            PrefixListName="l", MaxEntries=200, AddressFamily="IPv4", Entries=first
        )
        list_id = made["PrefixList"]["PrefixListId"]
        page = self.ec2.get_managed_prefix_list_entries(PrefixListId=list_id, MaxResults=100)
        rest = self.ec2.get_managed_prefix_list_entries(
            PrefixListId=list_id, MaxResults=100, NextToken=page["NextToken"]
        )
        self.assertEqual((len(page["Entries"]), len(rest["Entries"])), (100, 50))
        self.assertNotIn("NextToken", rest)
        self.ec2.modify_managed_prefix_list(
            PrefixListId=list_id, CurrentVersion=1, AddEntries=[{"Cidr": "172.16.0.0/12"}]
        )
        old = self.ec2.get_managed_prefix_list_entries(PrefixListId=list_id, TargetVersion=1)
        new = self.ec2.get_managed_prefix_list_entries(PrefixListId=list_id)
        self.assertEqual((len(old["Entries"]), len(new["Entries"])), (150, 151))

    def test_a_list_or_version_that_is_not_there_is_refused(self):
        with self.assertRaises(ClientError) as refused:
            self.ec2.get_managed_prefix_list_entries(PrefixListId="pl-00000000000000000")
        self.assertEqual(refused.exception.response["Error"]["Code"], "InvalidPrefixListID.NotFound")
        made = self.ec2.create_managed_prefix_list(PrefixListName="l", MaxEntries=1, AddressFamily="IPv4")
        list_id = made["PrefixList"]["PrefixListId"]
        with self.assertRaises(ClientError):
            self.ec2.get_managed_prefix_list_entries(PrefixListId=list_id, TargetVersion=7)

    def test_aws_own_lists_have_entries_and_no_version(self):
        lists = self.ec2.describe_managed_prefix_lists()["PrefixLists"]
        own = next(x for x in lists if x["PrefixListName"].endswith(".s3"))
        self.assertNotIn("Version", own)
        self.assertTrue(self.ec2.get_managed_prefix_list_entries(PrefixListId=own["PrefixListId"])["Entries"])

    def test_an_interface_keeps_the_ipv6_addresses_that_are_named(self):
        made = self.create(Groups=[self.group], Ipv6Addresses=[{"Ipv6Address": "2001:db8::4"}])
        self.assertEqual(made["Ipv6Addresses"], [{"Ipv6Address": "2001:db8::4"}])
