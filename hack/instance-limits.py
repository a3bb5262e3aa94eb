#!/usr/bin/env python3
"""Makes core/data/instance_limits.tsv: what each EC2 instance type can hold.

    hack/instance-limits.py SOURCE... > core/data/instance_limits.tsv

Each SOURCE is one of
  *.json      the answer of `aws ec2 describe-instance-types` (any region; give several for the union)
  *.json.gz   moto's copy of it (moto/ec2/resources/instance_types.json.gz of the PyPI packages moto, moto-ext)
  *.go        the AWS VPC CNI's table (pkg/vpc/vpc_ip_resource_limit.go of the Go module
              github.com/aws/amazon-vpc-cni-k8s), of which only the numbers are read

A type is taken from the first source that has it; where a later one disagrees, stderr says so. The file in the
tree was made from the VPC CNI v1.23.0 (what `eni-max-pods.txt`, and so kubelets, go by), then moto 5.2.5, then
moto-ext 5.1.21.

Columns, tab-separated, sorted by type: type, max_enis (all network cards together), addresses_per_eni (IPv4, the
ENI's own included), default_card, cards (`index:max_enis`, comma-separated), hypervisor (nitro, xen, unknown),
bare_metal (true, false).
"""

import gzip
import json
import re
import sys

GO_TYPE = re.compile(
    r'"(?P<type>[^"\s]+\.[^"\s]+)":\s*\{\s*ENILimit:\s*\d+,\s*IPv4Limit:\s*(?P<addresses>\d+),'
    r"\s*DefaultNetworkCardIndex:\s*(?P<card>\d+),\s*NetworkCards:\s*\[\]NetworkCard\{(?P<cards>.*?)\n\t\t\},"
    r'\s*HypervisorType:\s*"(?P<hypervisor>\w+)",\s*IsBareMetal:\s*(?P<metal>true|false)',
    re.DOTALL,
)
GO_CARD = re.compile(r"MaximumNetworkInterfaces:\s*(\d+),\s*NetworkCardIndex:\s*(\d+)")


def from_go(text):
    for match in GO_TYPE.finditer(text):
        cards = {int(index): int(most) for most, index in GO_CARD.findall(match["cards"])}
        yield match["type"], row(
            sum(cards.values()), match["addresses"], match["card"], cards, match["hypervisor"], match["metal"] == "true"
        )


def from_describe(document):
    """The CLI's answer is {"InstanceTypes": [...]}, moto's copy {type: {...}}."""
    types = document["InstanceTypes"] if "InstanceTypes" in document else document.values()
    for info in types:
        network = info["NetworkInfo"]
        most = network["MaximumNetworkInterfaces"]
        cards = {c["NetworkCardIndex"]: c["MaximumNetworkInterfaces"] for c in network.get("NetworkCards", [])}
        yield info["InstanceType"], row(
            most,
            network["Ipv4AddressesPerInterface"],
            network.get("DefaultNetworkCardIndex", 0),
            cards or {0: most},
            info.get("Hypervisor") or "unknown",
            info.get("BareMetal", False),
        )


def row(most, addresses, default_card, cards, hypervisor, metal):
    listed = ",".join(f"{index}:{cards[index]}" for index in sorted(cards))
    return (str(most), str(addresses), str(default_card), listed, hypervisor, "true" if metal else "false")


def read(path):
    if path.endswith(".go"):
        with open(path, encoding="utf-8") as file:
            return from_go(file.read())
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        return from_describe(json.load(file))


def main(paths):
    if not paths:
        sys.exit(__doc__)
    table = {}
    for path in paths:
        found = dict(read(path))
        if not found:
            sys.exit(f"{path}: no instance type in it")
        for name, limits in found.items():
            if table.setdefault(name, limits) != limits:
                print(f"{path}: {name}: {' '.join(limits)} ignored, kept {' '.join(table[name])}", file=sys.stderr)
        print(f"{path}: {len(found)} types, {len(table)} so far", file=sys.stderr)
    print("# Made by hack/instance-limits.py: do not edit.")
    print("# type\tmax_enis\taddresses_per_eni\tdefault_card\tcards\thypervisor\tbare_metal")
    for name in sorted(table):
        print(name, *table[name], sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
