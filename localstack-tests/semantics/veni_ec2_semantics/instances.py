"""RunInstances and TerminateInstances, as far as they touch ENIs; DescribeSubnets' count."""

from moto.ec2.models import elastic_network_interfaces as moto_enis
from moto.ec2.models.instances import Instance
from moto.ec2.models.subnets import Subnet

from . import addresses, lifecycle


def patch():
    Subnet.available_ip_address_count = property(lambda self: addresses.available(self.ec2_backend, self))
    Subnet.get_available_subnet_ip = _available_subnet_ip
    # moto adds the instance's security groups to every ENI that it attaches.
    moto_enis.NetworkInterface.group_set = property(lambda self: self._group_set)
    _patch_run()
    _patch_terminate()


def _available_subnet_ip(subnet, instance):
    (address,) = addresses.choose(subnet.ec2_backend, subnet, 1)
    subnet._subnet_ips[address] = instance
    return address


def _patch_run():
    original = Instance.prep_nics

    def prep_nics(self, nic_spec, *args, **kwargs):
        original(self, nic_spec, *args, **kwargs)
        for eni in self.nics.values():
            # EC2's default for an interface made with the instance.
            eni.delete_on_termination = True
        for spec in nic_spec:
            eni = self.nics.get(int(spec.get("DeviceIndex", 0)))
            if eni is None or spec.get("NetworkInterfaceId"):
                continue
            eni.delete_on_termination = spec.get("DeleteOnTermination", True) is not False
            extra = int(spec.get("SecondaryPrivateIpAddressCount") or 0)
            for address in addresses.choose(eni.ec2_backend, eni.subnet, extra):
                eni.private_ip_addresses.append({"Primary": False, "PrivateIpAddress": address})

    Instance.prep_nics = prep_nics


def _patch_terminate():
    original = Instance.terminate

    def terminate(self):
        kept = [eni for eni in self.nics.values() if not eni.delete_on_termination]
        answer = original(self)
        for eni in kept:
            lifecycle.detaching(eni)
        return answer

    Instance.terminate = terminate
