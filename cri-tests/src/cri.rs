//! The part of the Kubernetes Container Runtime Interface (v1) that one pod's life needs, as messages written by hand
//! (field numbers: `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`; fields that are not used are left out).

use std::{collections::HashMap, path::Path};

use anyhow::Context as _;
use prost::Message;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// A connection to a CRI socket.
#[derive(Debug, Clone)]
pub struct Cri {
    grpc: Grpc<Channel>,
}

/// What a command in a container did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub code: i32,
    /// Its standard output and standard error, one after the other.
    pub text: String,
}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    /// Name, namespace and uid.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// The host name inside.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Host ports.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// Linux-only settings.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PodSandboxMetadata {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The pod's uid.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The pod's Kubernetes namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// `PortMapping` (protocol TCP, the default, is 0).
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PortMapping {
    /// The port inside.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// The port on the node.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

/// `LinuxPodSandboxConfig`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct LinuxPodSandboxConfig {
    /// The parent of the pod's control groups.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

/// Any request that is one id in field 1, and any answer that is.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Id>,
    #[prost(message, optional, tag = "2")]
    image: Option<Id>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout_secs: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct RuntimeCondition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Id>,
}

// === impl PodSandboxConfig ===

impl PodSandboxConfig {
    /// A pod of the namespace `default` whose control groups hang below `cgroup_parent`.
    #[must_use]
    pub fn named(name: &str, cgroup_parent: &str) -> Self {
        Self {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
            }),
            hostname: name.into(),
            port_mappings: Vec::new(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: cgroup_parent.into() }),
        }
    }

    /// The same pod, its `container_port` reachable at the node's `host_port`.
    #[must_use]
    pub fn with_host_port(mut self, host_port: u16, container_port: u16) -> Self {
        self.port_mappings.push(PortMapping {
            container_port: container_port.into(),
            host_port: host_port.into(),
        });
        self
    }
}

// === impl Cri ===

impl Cri {
    /// Connects to the CRI socket at `socket`.
    ///
    /// # Errors
    /// When nothing listens there.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let channel = Endpoint::try_from(format!("unix://{}", socket.display()))?
            .connect()
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self { grpc: Grpc::new(channel) })
    }

    /// The runtime conditions (`RuntimeReady`, `NetworkReady`) that are false, with their messages.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn unready(&self) -> anyhow::Result<HashMap<String, String>> {
        let answer: StatusResponse = self.call("RuntimeService/Status", Empty {}).await?;
        let conditions = answer.status.context("Status without a status")?.conditions;
        Ok(conditions.into_iter().filter(|c| !c.status).map(|c| (c.kind, c.message)).collect())
    }

    /// Whether the runtime has the image `name`.
    ///
    /// # Errors
    /// When the runtime does not answer.
    pub async fn has_image(&self, name: &str) -> anyhow::Result<bool> {
        let request = ImageStatusRequest { image: Some(Id { id: name.into() }) };
        let answer: ImageStatusResponse = self.call("ImageService/ImageStatus", request).await?;
        Ok(answer.image.is_some())
    }

    /// Makes a pod sandbox (which runs the CNI plugins) and returns its id.
    ///
    /// # Errors
    /// What the runtime says, the CNI plugins' own error included.
    pub async fn run_pod(&self, config: &PodSandboxConfig) -> anyhow::Result<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: Id = self.call("RuntimeService/RunPodSandbox", request).await?;
        Ok(answer.id)
    }

    /// The pod's address as the runtime reports it.
    ///
    /// # Errors
    /// When the runtime knows no such pod, or no address of it.
    pub async fn pod_address(&self, pod: &str) -> anyhow::Result<String> {
        let request = Id { id: pod.into() };
        let answer: PodSandboxStatusResponse =
            self.call("RuntimeService/PodSandboxStatus", request).await?;
        let network = answer.status.and_then(|s| s.network).context("the pod has no network")?;
        Ok(network.ip)
    }

    /// Stops a pod: its containers end and the CNI plugins undo their work. Idempotent.
    ///
    /// # Errors
    /// What the runtime says.
    pub async fn stop_pod(&self, pod: &str) -> anyhow::Result<()> {
        let Empty {} = self.call("RuntimeService/StopPodSandbox", Id { id: pod.into() }).await?;
        Ok(())
    }

    /// Removes a stopped pod.
    ///
    /// # Errors
    /// What the runtime says.
    pub async fn remove_pod(&self, pod: &str) -> anyhow::Result<()> {
        let Empty {} = self.call("RuntimeService/RemovePodSandbox", Id { id: pod.into() }).await?;
        Ok(())
    }

    /// Starts `command` as a container of `pod` and returns the container's id.
    ///
    /// # Errors
    /// What the runtime says.
    pub async fn run_container(
        &self,
        pod: &str,
        pod_config: &PodSandboxConfig,
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<String> {
        let config = ContainerConfig {
            metadata: Some(Id { id: "app".into() }),
            image: Some(Id { id: image.into() }),
            command: command.iter().map(ToString::to_string).collect(),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(pod_config.clone()),
        };
        let container: Id = self.call("RuntimeService/CreateContainer", request).await?;
        let Empty {} = self.call("RuntimeService/StartContainer", container.clone()).await?;
        Ok(container.id)
    }

    /// Runs `command` in a container and waits for its end, 20 s at most.
    ///
    /// # Errors
    /// When the runtime cannot run it; a non-zero exit status is an [`Output`].
    pub async fn exec(&self, container: &str, command: &[&str]) -> anyhow::Result<Output> {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout_secs: 20,
        };
        let answer: ExecSyncResponse = self.call("RuntimeService/ExecSync", request).await?;
        let mut bytes = answer.stdout;
        bytes.extend(answer.stderr);
        Ok(Output { code: answer.exit_code, text: String::from_utf8_lossy(&bytes).into_owned() })
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> anyhow::Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{method}"))?;
        let mut grpc = self.grpc.clone();
        grpc.ready().await?;
        let answer = grpc
            .unary(Request::new(request), path, ProstCodec::<Q, A>::default())
            .await
            .with_context(|| method.to_string())?;
        Ok(answer.into_inner())
    }
}
