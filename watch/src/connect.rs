//! The way to the API server: address, credentials, TLS, and one HTTP/2 connection for all watches.
//!
//! kube reads kubeconfigs, tokens (again and again: they rotate) and certificates. The connection is made here, because
//! kube's speaks HTTP/1.1, where each watch has a connection of its own: ten a node are what an API server of
//! a large cluster cannot bear. HTTP/2's pings also find a peer that has silently gone.

use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use rustls::{
    crypto::{CryptoProvider, ring},
    pki_types::InvalidDnsNameError,
};
use tower::{BoxError, ServiceBuilder};

const CONNECT: Duration = Duration::from_secs(5);
/// As client-go's `readIdleTimeout` and `pingTimeout`: a peer that is gone is known to be within 45 s.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);

/// Where the address and the credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// An API server that asks for no credentials, as `kubectl proxy` offers.
    Open(http::Uri),
    /// The file or files that `KUBECONFIG` names.
    Kubeconfig,
    /// `KUBERNETES_SERVICE_HOST` and the service account that is mounted.
    InCluster,
}

/// Why there is no way yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// See the source.
    #[error("reading the kubeconfig that KUBECONFIG names")]
    Kubeconfig(#[source] KubeconfigError),
    /// It is set, and empty.
    #[error("KUBECONFIG names no file")]
    NoKubeconfig,
    /// See the source.
    #[error("reading the service account that is mounted")]
    InCluster(#[source] InClusterError),
    /// See the source.
    #[error("setting up TLS and credentials")]
    Setup(#[source] Box<kube::Error>),
    /// See the source.
    #[error("the kubeconfig's tls-server-name")]
    ServerName(#[source] InvalidDnsNameError),
}

impl Access {
    /// The access that the environment tells of; `None`: there is no cluster. An explicit kubeconfig comes first.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if is_set("KUBECONFIG") {
            Some(Self::Kubeconfig)
        } else {
            is_set("KUBERNETES_SERVICE_HOST").then_some(Self::InCluster)
        }
    }

    /// Sets a client up. It connects at its first request.
    ///
    /// # Errors
    /// When address or credentials cannot be read, or do not fit together.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        let config = match self {
            Self::Open(url) => Config::new(url.clone()),
            Self::InCluster => Config::incluster().map_err(ConnectError::InCluster)?,
            Self::Kubeconfig => {
                let file = Kubeconfig::from_env().map_err(ConnectError::Kubeconfig)?;
                let file = file.ok_or(ConnectError::NoKubeconfig)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(ConnectError::Kubeconfig)?
            }
        };
        client(&config)
    }
}

fn client(config: &Config) -> Result<Client, ConnectError> {
    // A daemon with the AWS SDK links two providers, and rustls does not choose. One that is installed meanwhile is fine.
    if CryptoProvider::get_default().is_none() {
        drop(ring::default_provider().install_default());
    }
    let setup = |error: kube::Error| ConnectError::Setup(Box::new(error));
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let mut https = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config().map_err(setup)?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(ConnectError::ServerName)?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = https.enable_all_versions().wrap_connector(tcp);
    let http: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PONG)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(setup)?)
        .layer(config.extra_headers_layer().map_err(setup)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
