//! etcd, the API server, the controllers, the scheduler and a DNS server, on a host of their own in the VPC, as EKS has them.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use super::{process::Process, programs::Programs};
use crate::{
    Lab,
    error::{Context as _, Result, make_dir},
    machine::SEARCH_PATH,
    ns::{Namespace, Worker},
};

/// The host's name in the lab.
pub const HOST: &str = "control";
/// The host's address: in the VPC, in no subnet of the nodes.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 240, 10);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 240, 1);
const PREFIX_LEN: u8 = 24;
/// The range of Services, EKS' default one.
pub const SERVICE_CIDR: &str = "172.20.0.0/16";
/// The domain that the cluster's DNS server, at [`ADDRESS`], answers for.
pub const DNS_DOMAIN: &str = "cluster.local";
/// The Service `kubernetes`: the range's first.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);
const API_PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
/// How long a part may take to be ready on a machine that is busy.
const READY: Duration = Duration::from_secs(60);

/// The control plane of one cluster.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    host: Namespace,
    programs: Programs,
    worker: Worker,
    // In the order in which they end.
    dns: Option<Process>,
    scheduler: Option<Process>,
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Makes the certificates, and starts etcd and the API server; does not wait for the latter: see
    /// [`ControlPlane::finish`].
    ///
    /// # Errors
    /// When a program cannot be started.
    pub(super) fn start(lab: &Lab, programs: &Programs) -> Result<Self> {
        let dir = directory(&lab.dir);
        make_dir(&dir.join("pki"))?;
        make_dir(&dir.join("log"))?;
        let host = lab.add_host(HOST, ADDRESS, PREFIX_LEN, GATEWAY)?;
        write_pki(lab, programs, &dir.join("pki"))?;
        let worker = Worker::start(&host)?;
        let mut this = Self {
            dir,
            host,
            programs: programs.clone(),
            worker,
            dns: None,
            scheduler: None,
            controllers: None,
            api_server: None,
            etcd: None,
        };
        this.write_kubeconfigs(lab)?;
        this.etcd = Some(this.run("etcd", &this.etcd_args())?);
        this.start_api_server()?;
        Ok(this)
    }

    /// Waits for the API server, and starts the controllers and the scheduler.
    ///
    /// # Errors
    /// When one of them ends, or the API server is not ready in time.
    pub fn finish(&mut self) -> Result<()> {
        self.wait_ready()?;
        self.controllers = Some(self.run("kube-controller-manager", &self.controller_args())?);
        self.scheduler = Some(self.run("kube-scheduler", &self.leader_args("scheduler"))?);
        if self.dns.is_none() {
            self.dns = Some(self.start_dns()?);
        }
        Ok(())
    }

    /// Starts the API server again after [`ControlPlane::stop_api_server`]; see [`ControlPlane::finish`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.api_server = Some(self.run("kube-apiserver", &self.api_server_args())?);
        Ok(())
    }

    /// Ends the API server, and with it the controllers and the scheduler: without it they cannot renew their leases, and
    /// would end. One without a lease that went on would find, once the API server is back, that no node had told of itself
    /// for longer than it may, and take every pod out of its Services before the kubelets have said a word.
    ///
    /// # Errors
    /// When one cannot be waited for.
    pub fn stop_api_server(&mut self) -> Result<()> {
        let ended = [self.scheduler.take(), self.controllers.take()];
        ended.into_iter().flatten().try_for_each(Process::stop)?;
        self.api_server.take().map_or(Ok(()), Process::stop)
    }

    /// Waits until the API server is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    fn wait_ready(&mut self) -> Result<()> {
        let (host, kubectl) = (self.host.clone(), self.programs.kubernetes("kubectl"));
        let config = self.kubeconfig("admin");
        let ask = || {
            // A kubectl takes longer than a refused connection.
            host.run(|| {
                std::net::TcpStream::connect((ADDRESS, API_PORT))
                    .map(drop)
                    .context(|| "nothing listens".to_owned())
            })?;
            kubectl_in(&host, &kubectl, &config, &["get", "--raw", "/readyz"], "")
        };
        match &mut self.api_server {
            Some(process) => process.wait_until(READY, ask).map(drop),
            None => Ok(()),
        }
    }

    /// Runs `kubectl` as the cluster's administrator with `input`; what it prints.
    ///
    /// # Errors
    /// When it fails: with what it says.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        let program = self.programs.kubernetes("kubectl");
        kubectl_in(&self.host, &program, &self.kubeconfig("admin"), args, input)
    }

    /// The kubeconfig of a user: `admin`, `proxy`…
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.kubeconfig"))
    }

    /// What the cluster is made of.
    pub(super) const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Where the certificates are.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// The host's network namespace.
    #[must_use]
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// As an administrator, which is more than it needs: it reads Services, EndpointSlices, namespaces and pods.
    fn start_dns(&self) -> Result<Process> {
        let (file, config) = (self.dir.join("Corefile"), self.kubeconfig("admin"));
        let text = format!(
            ".:53 {{\n bind {ADDRESS}\n errors\n kubernetes {DNS_DOMAIN} in-addr.arpa {{\n  kubeconfig {}\n  pods verified\n }}\n}}\n",
            config.display()
        );
        std::fs::write(&file, text).context(|| format!("cannot write {}", file.display()))?;
        let args = ["-conf".to_owned(), file.display().to_string()];
        self.run_program("coredns", self.programs.coredns(), &args)
    }

    fn run(&self, name: &str, args: &[String]) -> Result<Process> {
        self.run_program(name, self.programs.kubernetes(name), args)
    }

    fn run_program(&self, name: &str, program: PathBuf, args: &[String]) -> Result<Process> {
        let mut command = Command::new(program);
        command.args(args).env("PATH", SEARCH_PATH).env("HOME", &self.dir);
        Process::start(&self.worker, &self.dir.join("log"), name, &command)
    }

    fn etcd_args(&self) -> Vec<String> {
        let data = self.dir.join("etcd");
        // It lives as long as a test: nothing is kept for after a power cut.
        vec![
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        ]
    }

    fn api_server_args(&self) -> Vec<String> {
        let file = |name: &str| self.pki().join(name).display().to_string();
        let mut args = vec![
            format!("--etcd-servers={ETCD}"),
            format!("--secure-port={API_PORT}"),
            "--bind-address=0.0.0.0".to_owned(),
            // Not the loopback: it is the Service's endpoint.
            format!("--advertise-address={ADDRESS}"),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        ];
        for (option, name) in [
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("client-ca-file", "ca.crt"),
            ("kubelet-certificate-authority", "ca.crt"),
            ("kubelet-client-certificate", "kubelet-client.crt"),
            ("kubelet-client-key", "kubelet-client.key"),
            ("service-account-key-file", "sa.pub"),
            ("service-account-signing-key-file", "sa.key"),
        ] {
            args.push(format!("--{option}={}", file(name)));
        }
        args
    }

    fn controller_args(&self) -> Vec<String> {
        let mut args = self.leader_args("controllers");
        args.extend([
            "--use-service-account-credentials".to_owned(),
            format!("--root-ca-file={}", self.pki().join("ca.crt").display()),
            format!("--service-account-private-key-file={}", self.pki().join("sa.key").display()),
            // Its own default of 20 holds a cluster's first seconds up by four.
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=1000".to_owned(),
        ]);
        args
    }

    /// What the controllers and the scheduler share: there is one of each.
    fn leader_args(&self, user: &str) -> Vec<String> {
        let config = self.kubeconfig(user).display().to_string();
        let mut args: Vec<_> =
            ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
                .map(|option| format!("--{option}={config}"))
                .into();
        args.extend(["--leader-elect=false".to_owned(), "--bind-address=127.0.0.1".to_owned()]);
        args
    }

    fn write_kubeconfigs(&self, lab: &Lab) -> Result<()> {
        let nodes = lab.nodes().iter().map(|node| format!("node-{}", node.name));
        let users = ["admin", "controllers", "scheduler", "proxy"].map(str::to_owned);
        for user in users.into_iter().chain(nodes) {
            let file = |kind: &str| self.pki().join(format!("{user}.{kind}"));
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "veni",
                "clusters": [{"name": "veni", "cluster": {
                    "server": format!("https://{ADDRESS}:{API_PORT}"),
                    "certificate-authority": self.pki().join("ca.crt"),
                }}],
                "users": [{"name": user, "user": {
                    "client-certificate": file("crt"), "client-key": file("key"),
                }}],
                "contexts": [{"name": "veni", "context": {"cluster": "veni", "user": user}}],
            });
            let path = self.kubeconfig(&user);
            std::fs::write(&path, config.to_string())
                .context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Where the cluster on the lab that keeps its files in `lab` has the kubeconfig of a user.
#[must_use]
pub fn kubeconfig(lab: &Path, user: &str) -> PathBuf {
    directory(lab).join(format!("{user}.kubeconfig"))
}

fn directory(lab: &Path) -> PathBuf {
    lab.join("kubernetes")
}

fn kubectl_in(
    host: &Namespace,
    program: &Path,
    config: &Path,
    args: &[&str],
    input: &str,
) -> Result<String> {
    let (program, config) = (program.display().to_string(), config.display().to_string());
    let mut all = vec!["--kubeconfig", &config];
    all.extend(args);
    host.tool(&program, &all, input)
}

fn write_pki(lab: &Lab, programs: &Programs, dir: &Path) -> Result<()> {
    let identity = |file: &str, user: &str, organization: &str| json!({"file": file, "user": user, "organization": organization});
    let mut api_server = identity("apiserver", "kube-apiserver", "");
    api_server["names"] = json!([
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local"
    ]);
    api_server["addresses"] = json!([Ipv4Addr::LOCALHOST, API_SERVICE, ADDRESS]);
    // The names that Kubernetes' own roles are bound to.
    let mut identities = vec![
        api_server,
        identity("admin", "admin", "system:masters"),
        identity("kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
        identity("controllers", "system:kube-controller-manager", ""),
        identity("scheduler", "system:kube-scheduler", ""),
        identity("proxy", "system:kube-proxy", ""),
    ];
    for node in lab.nodes() {
        let mut of = identity(
            &format!("node-{}", node.name),
            &format!("system:node:{}", node.name),
            "system:nodes",
        );
        of["names"] = json!([node.name]);
        of["addresses"] = json!([node.address]);
        identities.push(of);
    }
    let program = programs.kubernetes("pki").display().to_string();
    let host = lab.namespace(HOST)?;
    host.tool(&program, &[&dir.display().to_string()], &Value::from(identities).to_string())
        .map(drop)
}
