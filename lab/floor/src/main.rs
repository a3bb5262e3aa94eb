//! The floor under an ADD: a static program that makes a pod's links, address, routes and neighbour in three netlink
//! writes, and nothing else. No JSON, no daemon, no filter, no check of what was there before.
//!
//! ```text
//! veni-floor NETNS HOST_IFNAME HOST_IFINDEX POD_IFINDEX POD_ADDRESS NODE_ADDRESS HOST_MAC POD_MAC MTU TABLE
//! ```
//!
//! Invariant: it does to the kernel what the plugin does, in the same number of writes, and takes every short cut that
//! is left. It allocates nothing and starts without the standard library's start-up.

#![no_main]
#![expect(unsafe_code, reason = "system calls and the C entry point, as bare as they come")]

use std::{
    ffi::CStr,
    mem::{size_of, zeroed},
};

use libc::{c_char, c_int, c_void};

const VETH_INFO_PEER: u16 = 1;
/// `proto 118`, as veni marks its own routes.
const PROTOCOL: u8 = 118;
/// The on-link gateway inside every pod.
const GATEWAY: [u8; 4] = [169, 254, 1, 1];

/// What the arguments say.
struct Wiring<'a> {
    netns: &'a CStr,
    host_ifname: &'a [u8],
    host_ifindex: u32,
    pod_ifindex: u32,
    address: [u8; 4],
    node_address: [u8; 4],
    host_mac: [u8; 6],
    pod_mac: [u8; 6],
    mtu: u32,
    table: u32,
}

/// Netlink messages that go in one write.
struct Batch {
    buffer: [u8; 1024],
    len: usize,
    /// Where the last message starts.
    last: usize,
}

/// Which step failed.
type Step = &'static CStr;

// SAFETY: no other symbol of the program is called `main`.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let arg = |n: usize| {
        // SAFETY: argv holds argc C strings, and every n below is under 11.
        unsafe { CStr::from_ptr(*argv.add(n)) }
    };
    if argc != 11 {
        return fail(c"veni-floor: wants 10 arguments");
    }
    let wiring = (|| {
        Some(Wiring {
            netns: arg(1),
            host_ifname: arg(2).to_bytes_with_nul(),
            host_ifindex: number(arg(3))?,
            pod_ifindex: number(arg(4))?,
            address: octets(arg(5), b'.', 10)?,
            node_address: octets(arg(6), b'.', 10)?,
            host_mac: octets(arg(7), b':', 16)?,
            pod_mac: octets(arg(8), b':', 16)?,
            mtu: number(arg(9))?,
            table: number(arg(10))?,
        })
    })();
    match wiring.ok_or(c"veni-floor: cannot read an argument").and_then(|wiring| wire(&wiring)) {
        Ok(()) => 0,
        Err(step) => fail(step),
    }
}

fn wire(wiring: &Wiring<'_>) -> Result<(), Step> {
    // SAFETY: the path is a C string.
    let netns = unsafe { libc::open(wiring.netns.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if netns < 0 {
        return Err(c"veni-floor: cannot open the namespace");
    }
    let mut batch = Batch::new();
    batch.veth(wiring, netns);
    batch.host_route(wiring);
    batch.send(socket()?, c"veni-floor: the veth pair or the node's route")?;

    // SAFETY: no pointers.
    if unsafe { libc::setns(netns, libc::CLONE_NEWNET) } != 0 {
        return Err(c"veni-floor: cannot enter the namespace");
    }
    let pod = socket()?;
    let mut batch = Batch::new();
    batch.up(wiring.pod_ifindex);
    batch.address(wiring);
    batch.send(pod, c"veni-floor: the pod's link or address")?;

    let mut batch = Batch::new();
    batch.pod_route(wiring, &GATEWAY, None, libc::RT_SCOPE_LINK);
    batch.pod_route(wiring, &[], Some(GATEWAY), libc::RT_SCOPE_UNIVERSE);
    batch.neighbour(wiring);
    batch.send(pod, c"veni-floor: the pod's routes or neighbour")
}

// === impl Batch ===

impl Batch {
    fn new() -> Self {
        Self { buffer: [0; 1024], len: 0, last: 0 }
    }

    /// Both ends in one message, the peer in the pod's namespace at once; the node's end up at once.
    fn veth(&mut self, wiring: &Wiring<'_>, netns: c_int) {
        self.message(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        self.put(&link(wiring.host_ifindex, true));
        self.attribute(libc::IFLA_IFNAME, wiring.host_ifname);
        self.attribute(libc::IFLA_MTU, &wiring.mtu.to_ne_bytes());
        self.attribute(libc::IFLA_ADDRESS, &wiring.host_mac);
        let info = self.open(libc::IFLA_LINKINFO);
        self.attribute(libc::IFLA_INFO_KIND, b"veth");
        let data = self.open(libc::IFLA_INFO_DATA);
        let peer = self.open(VETH_INFO_PEER);
        self.put(&link(wiring.pod_ifindex, false));
        self.attribute(libc::IFLA_IFNAME, b"eth0\0");
        self.attribute(libc::IFLA_MTU, &wiring.mtu.to_ne_bytes());
        self.attribute(libc::IFLA_ADDRESS, &wiring.pod_mac);
        self.attribute(libc::IFLA_NET_NS_FD, &netns.to_ne_bytes());
        for nest in [peer, data, info] {
            self.close(nest);
        }
        self.end();
    }

    fn host_route(&mut self, wiring: &Wiring<'_>) {
        self.message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        self.put(&route(32, libc::RT_TABLE_UNSPEC, libc::RT_SCOPE_LINK));
        self.attribute(libc::RTA_DST, &wiring.address);
        self.attribute(libc::RTA_OIF, &wiring.host_ifindex.to_ne_bytes());
        self.attribute(libc::RTA_PREFSRC, &wiring.node_address);
        self.attribute(libc::RTA_TABLE, &wiring.table.to_ne_bytes());
        self.end();
    }

    fn up(&mut self, ifindex: u32) {
        self.message(libc::RTM_NEWLINK, 0);
        self.put(&link(ifindex, true));
        self.end();
    }

    fn address(&mut self, wiring: &Wiring<'_>) {
        self.message(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let [a, b, c, d] = wiring.pod_ifindex.to_ne_bytes();
        self.put(&[INET, 32, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d]);
        self.attribute(libc::IFA_LOCAL, &wiring.address);
        self.attribute(libc::IFA_ADDRESS, &wiring.address);
        self.end();
    }

    fn pod_route(&mut self, wiring: &Wiring<'_>, to: &[u8], gateway: Option<[u8; 4]>, scope: u8) {
        self.message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        self.put(&route(if to.is_empty() { 0 } else { 32 }, libc::RT_TABLE_MAIN, scope));
        if !to.is_empty() {
            self.attribute(libc::RTA_DST, to);
        }
        if let Some(gateway) = gateway {
            self.attribute(libc::RTA_GATEWAY, &gateway);
        }
        self.attribute(libc::RTA_OIF, &wiring.pod_ifindex.to_ne_bytes());
        self.end();
    }

    fn neighbour(&mut self, wiring: &Wiring<'_>) {
        self.message(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct ndmsg: family, padding, index, state, flags, type.
        let [a, b, c, d] = wiring.pod_ifindex.to_ne_bytes();
        let [state, high] = libc::NUD_PERMANENT.to_ne_bytes();
        self.put(&[INET, 0, 0, 0, a, b, c, d, state, high, 0, 0]);
        self.attribute(libc::NDA_DST, &GATEWAY);
        self.attribute(libc::NDA_LLADDR, &wiring.host_mac);
        self.end();
    }

    /// One write, and the acknowledgement of its last message; an error of an earlier one comes first.
    fn send(mut self, socket: c_int, step: Step) -> Result<(), Step> {
        let flags = self.last + 6;
        self.buffer[flags] |= NLM_F_ACK;
        // SAFETY: the buffer holds `len` bytes.
        let sent = unsafe { libc::send(socket, self.buffer.as_ptr().cast(), self.len, 0) };
        if usize::try_from(sent) != Ok(self.len) {
            return Err(step);
        }
        let buffer: *mut c_void = self.buffer.as_mut_ptr().cast();
        // SAFETY: the buffer may be overwritten up to its length.
        let received = unsafe { libc::recv(socket, buffer, self.buffer.len(), 0) };
        // struct nlmsghdr, then nlmsgerr's error: 0 is the acknowledgement.
        let error = self.buffer[16..20].try_into().map_or(0, i32::from_ne_bytes);
        if received >= 20 && error == 0 {
            return Ok(());
        }
        // SAFETY: the thread's own errno, for the message.
        unsafe { *libc::__errno_location() = -error };
        Err(step)
    }

    fn message(&mut self, kind: u16, flags: c_int) {
        self.last = self.len;
        let flags = (flags | libc::NLM_F_REQUEST).to_ne_bytes();
        let [kind, high] = kind.to_ne_bytes();
        // struct nlmsghdr: length (set at the end), type, flags, sequence number, port.
        self.put(&[0, 0, 0, 0, kind, high, flags[0], flags[1], 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn end(&mut self) {
        let start = self.last;
        self.write_len(start, 4);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.put(value);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.len;
        let [kind, high] = kind.to_ne_bytes();
        self.put(&[0, 0, kind, high]);
        start
    }

    fn close(&mut self, start: usize) {
        self.write_len(start, 2);
        // Attributes start at multiples of 4 (netlink(7)); the buffer is zero beyond its end.
        self.len = self.len.next_multiple_of(4);
    }

    fn write_len(&mut self, start: usize, width: usize) {
        let len = (self.len - start).to_le_bytes();
        self.buffer[start..start + width].copy_from_slice(&len[..width]);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

const INET: u8 = 2;
const NLM_F_ACK: u8 = 4;

/// struct ifinfomsg: family, padding, type, index, flags, change.
fn link(ifindex: u32, up: bool) -> [u8; 16] {
    let mut message = [0; 16];
    message[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    message[8] = u8::from(up);
    message[12] = u8::from(up);
    message
}

/// struct rtmsg: family, destination and source length, TOS, table, protocol, scope, type, flags.
fn route(len: u8, table: u8, scope: u8) -> [u8; 12] {
    [INET, len, 0, 0, table, PROTOCOL, scope, libc::RTN_UNICAST, 0, 0, 0, 0]
}

fn socket() -> Result<c_int, Step> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    // SAFETY: a C structure of integers. The kernel's port is 0.
    let mut kernel: libc::sockaddr_nl = unsafe { zeroed() };
    kernel.nl_family = 16;
    let len = u32::try_from(size_of::<libc::sockaddr_nl>()).unwrap_or(0);
    // SAFETY: the address is as long as stated.
    let connected = unsafe { libc::connect(socket, (&raw const kernel).cast(), len) };
    if connected == 0 { Ok(socket) } else { Err(c"veni-floor: cannot open a netlink socket") }
}

fn number(text: &CStr) -> Option<u32> {
    text.to_bytes().iter().try_fold(0u32, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(u32::from(digit))
    })
}

fn octets<const N: usize>(text: &CStr, separator: u8, radix: u32) -> Option<[u8; N]> {
    let mut octets = [0; N];
    let mut parts = text.to_bytes().split(|byte| *byte == separator);
    for octet in &mut octets {
        let part = parts.next().and_then(|part| std::str::from_utf8(part).ok())?;
        *octet = u8::from_str_radix(part, radix).ok()?;
    }
    Some(octets)
}

fn fail(step: &CStr) -> c_int {
    // SAFETY: a C string. The system's own words are added.
    unsafe { libc::perror(step.as_ptr()) };
    1
}
