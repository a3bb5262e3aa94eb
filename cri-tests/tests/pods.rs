//! Pods through containerd: the real runtime, plugin, daemon and `portmap`, on a node of the lab.
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use veni_cri_tests::{
    containerd::{Containerd, Setup, Tools},
    cri::{Cri, PodSandboxConfig},
    image::{IMAGE, PAGE},
};
use veni_lab::{
    lab::{Lab, LabConfig},
    node::Node,
    ns::Namespace,
    snapshot::Snapshot,
};

const SERVE: &[&str] = &["httpd", "-f", "-p", "80", "-h", "/www"];
const HOST_PORT: u16 = 8080;

/// A lab with one node and containerd on it. Dropped in this order: the runtime goes before its node.
struct Stage {
    cri: Cri,
    containerd: Containerd,
    tools: Tools,
    setup: Setup,
    node: Arc<Node>,
    lab: Lab,
}

struct Pod {
    id: String,
    address: Ipv4Addr,
    container: String,
}

// === impl Stage ===

impl Stage {
    async fn up(name: &str) -> Self {
        let tools = Tools::find().unwrap();
        // Nobody writes objects for the runtime's pods: no policy.
        let config = LabConfig::one_node(name, "m5.xlarge").with_env("VENI_MANIFEST_DIR", "");
        let lab = Lab::up(&config).unwrap();
        let node = Arc::clone(&lab.nodes()[0]);
        // The shipped one, to the letter but for where this node's daemon listens.
        let mut conflist: Value =
            serde_json::from_str(include_str!("../../cni/install/10-veni.conflist")).unwrap();
        let socket = &mut conflist["plugins"][0]["socket"];
        assert!(socket.is_string());
        *socket = json!(node.socket());
        let setup = Setup {
            conflist: conflist.to_string(),
            plugin: node.runtime.plugin.clone(),
            cni_cache: node.runtime.cache_dir.clone(),
        };
        let (containerd, cri) = Containerd::start(&tools, &setup, &node.namespace).await.unwrap();
        Self { cri, containerd, tools, setup, node, lab }
    }

    fn config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig::named(name, &self.containerd.cgroup_parent())
    }

    /// A pod that serves [`PAGE`] on port 80.
    async fn run(&self, config: &PodSandboxConfig) -> Pod {
        let told = |error: anyhow::Error| panic!("{error:#}\n{}", self.containerd.log_end());
        let id = self.cri.run_pod(config).await.unwrap_or_else(told);
        let container =
            self.cri.run_container(&id, config, IMAGE, SERVE).await.unwrap_or_else(told);
        let address = self.cri.pod_address(&id).await.unwrap_or_else(told).parse().unwrap();
        Pod { id, address, container }
    }

    async fn remove(&self, pod: &Pod) {
        self.cri.stop_pod(&pod.id).await.unwrap();
        self.cri.remove_pod(&pod.id).await.unwrap();
    }

    /// The addresses that the daemon holds for pods, with the pods' names.
    fn allocations(&self) -> Vec<(Ipv4Addr, String)> {
        let view = self.node.inspect().unwrap();
        let assigned = view.addresses.into_iter().filter(|address| address.attachment.is_some());
        let mut held: Vec<_> =
            assigned.map(|a| (a.address, a.pod.map(|pod| pod.name).unwrap_or_default())).collect();
        held.sort();
        held
    }

    /// libcni's entries for our network (containerd has one of its own, for the loopback plugin).
    fn cached_results(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.setup.cni_cache.join("results")).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("veni-")).collect()
    }

    async fn assert_reaches(&self, from: &Pod, to: Ipv4Addr) {
        let to = to.to_string();
        let ping = ["ping", "-c", "1", "-W", "5", &to];
        let output = self.cri.exec(&from.container, &ping).await.unwrap();
        assert_eq!(output.code, 0, "ping {to}: {}", output.text);
        // Not wget: what a static busybox links of glibc's resolver may crash.
        let get = format!("printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {to} 80");
        let output = self.cri.exec(&from.container, &["sh", "-c", &get]).await.unwrap();
        assert!(output.code == 0 && output.text.ends_with(PAGE), "GET from {to}: {output:?}");
    }
}

/// What `address` answers to an HTTP request that is made inside `namespace`.
fn get(namespace: &Namespace, address: SocketAddr) -> std::io::Result<String> {
    let fetch = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    namespace.run(|| Ok(fetch())).unwrap()
}

#[tokio::test]
async fn two_pods_get_vpc_addresses_talk_and_leave_nothing() {
    let stage = Stage::up("cri-talk").await;
    let before = Snapshot::take(&stage.node.namespace).unwrap();

    let one = stage.run(&stage.config("one")).await;
    let two = stage.run(&stage.config("two")).await;
    let mut expected = [(one.address, "one".to_owned()), (two.address, "two".to_owned())];
    expected.sort();
    assert_eq!(stage.allocations(), expected, "the daemon and the runtime agree");
    let subnet: veni_core::net::Ipv4Prefix = veni_lab::vpc::SUBNETS[0].parse().unwrap();
    assert!(subnet.contains(one.address) && subnet.contains(two.address), "{expected:?}");
    assert_eq!(stage.cached_results().len(), 2);

    stage.assert_reaches(&one, two.address).await;
    stage.assert_reaches(&two, one.address).await;
    let from_node = get(&stage.node.namespace, (one.address, 80).into()).unwrap();
    assert!(from_node.ends_with(PAGE), "{from_node}");

    stage.remove(&one).await;
    stage.remove(&two).await;
    assert_eq!(stage.allocations(), [], "no allocation is left");
    assert_eq!(stage.cached_results(), Vec::<String>::new(), "libcni's cache is empty");
    let after = Snapshot::take(&stage.node.namespace).unwrap();
    let difference = before.difference(&after);
    assert!(difference.is_empty(), "left behind: {difference:?}");
}

#[tokio::test]
async fn a_host_port_leads_to_the_pod_until_it_is_removed() {
    let stage = Stage::up("cri-port").await;
    let config = stage.config("web").with_host_port(HOST_PORT, 80);
    let pod = stage.run(&config).await;

    let door = SocketAddr::from((stage.node.address, HOST_PORT));
    for (name, namespace) in
        [("the node", &stage.node.namespace), ("the peered network", &stage.lab.vpc.peer)]
    {
        let answer = get(namespace, door).unwrap_or_else(|error| panic!("from {name}: {error}"));
        assert!(answer.ends_with(PAGE), "from {name}: {answer}");
    }

    stage.remove(&pod).await;
    let refused = get(&stage.lab.vpc.peer, door).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    assert_eq!(stage.allocations(), []);
}

#[tokio::test]
async fn pods_that_died_with_the_runtime_keep_their_addresses_until_they_are_removed() {
    let mut stage = Stage::up("cri-die").await;
    let before = Snapshot::take(&stage.node.namespace).unwrap();
    let pod = stage.run(&stage.config("victim")).await;

    stage.cri = stage.containerd.restart(&stage.tools, &stage.setup).await.unwrap();
    assert_eq!(
        stage.allocations(),
        [(pod.address, "victim".to_owned())],
        "the runtime still has it"
    );

    stage.remove(&pod).await;
    assert_eq!(stage.allocations(), []);
    let after = Snapshot::take(&stage.node.namespace).unwrap();
    let difference = before.difference(&after);
    assert!(difference.is_empty(), "left behind: {difference:?}");
}
