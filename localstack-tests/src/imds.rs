//! Instance metadata (IMDSv2), fed from EC2's state, which LocalStack does not have.
//!
//! It can do what the real one does at times: lag behind EC2, forget an ENI, list only some of its addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use tokio::net::TcpListener;
use veni_core::{
    id::{EniId, InstanceId, InstanceType},
    net::Ipv4Prefix,
};
use veni_localstack::metadata::{Attached, Instance};
use veni_provider::{Cloud, CloudResult, InterfaceFilter, InterfaceStatus, SubnetFilter};
use veni_provider_aws::AwsCloud;

use crate::account::{REGION, ZONE};

const TOKEN: &str = "localstack-tests-token";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// One tree serves the burst of reads that one look at all ENIs is.
const FRESH: Duration = Duration::from_millis(100);

/// The metadata of one instance, served on a loopback port as long as the test's runtime lives.
#[derive(Debug, Clone)]
pub struct Metadata {
    port: u16,
    source: Arc<Source>,
}

#[derive(Debug)]
struct Source {
    ec2: AwsCloud,
    instance: Instance,
    whims: Mutex<Whims>,
    tree: tokio::sync::Mutex<Option<(Instant, Attached)>>,
}

/// What it gets wrong at present.
#[derive(Debug, Clone, Default)]
struct Whims {
    lags: bool,
    down: bool,
    forgotten: BTreeSet<EniId>,
    short: BTreeMap<EniId, usize>,
}

impl Metadata {
    /// Serves the metadata of `instance`.
    pub(crate) async fn serve(
        ec2: AwsCloud,
        instance: InstanceId,
        kind: InstanceType,
        vpc_cidrs: Vec<Ipv4Prefix>,
    ) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for metadata")?;
        let port = listener.local_addr()?.port();
        let (whims, tree) = (Mutex::default(), tokio::sync::Mutex::default());
        let (region, zone) = (REGION.to_owned(), ZONE.to_owned());
        let instance = Instance { id: instance, kind, region, zone, vpc_cidrs };
        let source = Arc::new(Source { ec2, instance, whims, tree });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&source));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { port, source })
    }

    /// For `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on it shows what it showed last.
    pub fn lag(&self) {
        self.whims(|whims| whims.lags = true);
    }

    /// From now on it answers 500.
    pub fn fail(&self) {
        self.whims(|whims| whims.down = true);
    }

    /// From now on it does not know `eni`.
    pub fn forget(&self, eni: &EniId) {
        self.whims(|whims| {
            whims.forgotten.insert(eni.clone());
        });
    }

    /// From now on it lists only the first `count` addresses of `eni`.
    pub fn list_only(&self, eni: &EniId, count: usize) {
        self.whims(|whims| {
            whims.short.insert(eni.clone(), count);
        });
    }

    /// From now on it shows EC2's state, all of it.
    pub fn recover(&self) {
        self.whims(|whims| *whims = Whims::default());
    }

    fn whims(&self, change: impl FnOnce(&mut Whims)) {
        change(&mut self.source.whims.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn answer(
    State(source): State<Arc<Source>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let whims = source.whims.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if whims.down {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if method == Method::PUT && uri.path() == "/latest/api/token" {
        let Some(ttl) = headers.get(TTL) else { return StatusCode::BAD_REQUEST.into_response() };
        return ([(TTL, ttl.clone())], TOKEN).into_response();
    }
    if headers.get("x-aws-ec2-metadata-token").is_none_or(|token| token != TOKEN) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(path) = uri.path().strip_prefix("/latest/meta-data/") else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match source.tree(&whims).await {
        Ok(tree) => match source.instance.value(path, &whims.distort(tree)) {
            Some(text) => text.into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

impl Source {
    async fn tree(&self, whims: &Whims) -> CloudResult<Attached> {
        let mut held = self.tree.lock().await;
        if let Some((since, tree)) = held.as_ref()
            && (whims.lags || since.elapsed() < FRESH)
        {
            return Ok(tree.clone());
        }
        let filter = InterfaceFilter::AttachedTo(self.instance.id.clone());
        let mut interfaces = self.ec2.describe_interfaces(filter).await?;
        interfaces.retain(|interface| interface.status == InterfaceStatus::InUse);
        let subnets: BTreeSet<_> = interfaces.iter().map(|i| i.subnet_id.clone()).collect();
        let subnets = SubnetFilter::Ids(subnets.into_iter().collect());
        let subnets = self.ec2.describe_subnets(subnets).await?;
        let cidrs = subnets.into_iter().map(|subnet| (subnet.id, subnet.cidr)).collect();
        let tree = Attached { interfaces, cidrs };
        *held = Some((Instant::now(), tree.clone()));
        Ok(tree)
    }
}

impl Whims {
    fn distort(&self, mut tree: Attached) -> Attached {
        tree.interfaces.retain(|interface| !self.forgotten.contains(&interface.id));
        for interface in &mut tree.interfaces {
            // The primary address is the first one listed.
            let listed = self.short.get(&interface.id).map(|count| count.saturating_sub(1));
            interface.secondary_addresses.truncate(listed.unwrap_or(usize::MAX));
        }
        tree
    }
}
