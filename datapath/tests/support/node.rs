//! A node in namespaces of its own: network and mounts. The machine's stay untouched.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use veni_core::{id::IfName, net::Mac, wire::Wiring};
use veni_datapath::{
    netlink::Socket,
    netns::{self, NetNs},
    pod,
};

/// The node's own address, on `lo` or on `eth0`.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);

/// Runs `test` in a thread with fresh network and mount namespaces and an empty directory for a BPF file system.
/// Where that is not allowed, says which feature is missing.
pub(crate) fn in_node(test: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_owned();
    let thread = thread::spawn(move || {
        if let Err(error) = isolate() {
            match netns::missing_feature(&error) {
                Some(missing) => return println!("SKIPPED: {missing}"),
                None => panic!("namespaces of the test's own: {error}"),
            }
        }
        run("ip", &["link", "set", "lo", "up"]);
        test(&path);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[expect(unsafe_code, reason = "unshare(2) and mount(2)")]
fn isolate() -> std::io::Result<()> {
    // SAFETY: no pointers; only this thread is affected.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: a C string, and null where the kernel ignores the argument.
    let private = unsafe {
        libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null())
    };
    if private == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A new namespace for a pod.
pub(crate) fn pod_namespace() -> NetNs {
    thread::spawn(NetNs::unshare).join().expect("a thread").expect("a namespace")
}

/// How the `n`th pod is wired (n from 1).
pub(crate) fn wiring(n: u8, blocks: Option<veni_core::wire::FilterBlocks>) -> Wiring {
    Wiring {
        address: Ipv4Addr::new(10, 0, 9, n),
        gateway: veni_core::config::POD_GATEWAY,
        host_ifname: name(&format!("eni{n:011x}")),
        host_ifindex: 0x10_0000 + u32::from(n),
        host_mac: Mac([2, 0xaa, 0, 0, 0, n]),
        pod_mac: Mac([2, 0xbb, 0, 0, 0, n]),
        mtu: 9001,
        pod_table: 7600,
        node_address: NODE,
        blocks,
        eni: "eni-0123456789abcdef0".parse().expect("an ENI id"),
    }
}

/// Wires the pod; returns its namespace.
pub(crate) fn wire(wiring: &Wiring) -> NetNs {
    let namespace = pod_namespace();
    let mut socket = Socket::open().expect("a socket");
    let mut inside = namespace.socket().expect("a socket inside");
    pod::wire(&mut socket, &mut inside, &namespace, wiring, &name("eth0")).expect("wiring");
    namespace
}

/// Runs a command in the thread's namespaces; its success is asserted.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `ip` with words.
pub(crate) fn ip(words: &str) -> String {
    run("ip", &words.split_whitespace().collect::<Vec<_>>())
}

/// Runs a command in the thread's namespaces, however it ends.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs `work` inside `namespace`.
pub(crate) fn within<T>(namespace: &NetNs, work: impl FnOnce() -> T) -> T {
    let _inside = namespace.enter().expect("entering");
    work()
}

/// Hands the id of a process inside `namespace` to `work`, for `ip link set … netns`.
pub(crate) fn run_in<T>(namespace: &NetNs, work: impl FnOnce(u32) -> T) -> T {
    let mut sleeper = within(namespace, || Command::new("sleep").arg("60").spawn().expect("sleep"));
    let result = work(sleeper.id());
    sleeper.kill().expect("ending it");
    sleeper.wait().expect("its end");
    result
}

pub(crate) fn name(text: &str) -> IfName {
    text.parse().expect("an interface name")
}

/// The directory for pins.
pub(crate) fn pins(directory: &Path) -> PathBuf {
    directory.join("veni")
}
