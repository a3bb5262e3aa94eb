//! One leader among replicas, by a `coordination.k8s.io/v1` Lease.
//!
//! Every write names the version that it changes, so that of two writers one is told no (409). What is done as a leader
//! runs beside the renewals and is dropped when they fail; before each effect it asks [`Fence::confirm`], which renews the
//! Lease unless that was done a moment ago.

use std::{future::Future, sync::Arc};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    select,
    sync::{Mutex, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    lease::{Record, Terms, Watched},
    metrics::Metrics,
};

/// Whether one may still act.
pub trait Fence: Send + Sync {
    /// `true`: nobody else leads now. To be asked before each effect.
    fn confirm(&self) -> impl Future<Output = bool> + Send;
}

/// A candidate.
#[derive(Debug)]
pub struct Elector {
    leases: Leases,
    watched: Option<Watched>,
    /// Whose Lease was told last.
    told: Option<String>,
    metrics: Arc<Metrics>,
}

/// The Lease, held.
#[derive(Debug)]
pub struct Leadership {
    leases: Leases,
    held: Mutex<Held>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Clone)]
struct Leases {
    api: Api<Lease>,
    name: String,
    /// Who we are. No two processes have the same.
    identity: String,
    terms: Terms,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    /// When the request of the last renewal that succeeded was sent.
    renewed_at: Instant,
    lost: bool,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Somebody else has written or made it.
    #[error("the Lease was written by somebody else")]
    Conflict,
    /// There is none.
    #[error("there is no such Lease")]
    Missing,
    #[error("{0}")]
    Other(String),
}

impl Elector {
    /// A candidate for the Lease `name` in `namespace`, who is known as `identity`.
    #[must_use]
    pub fn new(
        client: Client,
        (namespace, name): (&str, &str),
        identity: String,
        terms: Terms,
        metrics: Arc<Metrics>,
    ) -> Self {
        let api = Api::namespaced(client, namespace);
        let leases = Leases { api, name: name.to_owned(), identity, terms };
        Self { leases, watched: None, told: None, metrics }
    }

    /// Leads whenever it can, until told to stop: then it gives the Lease back. `duty` is what a leader does; it is dropped
    /// when the Lease is lost, and begun anew when it is held again.
    pub async fn run<D>(
        mut self,
        mut stop: watch::Receiver<bool>,
        duty: impl Fn(Arc<Leadership>) -> D,
    ) where
        D: Future<Output = ()>,
    {
        let retry = self.leases.terms.retry;
        loop {
            let taken = select! {
                taken = self.take() => taken,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            if let Some(leadership) = taken {
                let leadership = Arc::new(leadership);
                self.metrics.leads(true);
                let stopped = select! {
                    () = leadership.keep() => false,
                    () = duty(leadership.clone()) => false,
                    _ = stop.wait_for(|stop| *stop) => true,
                };
                self.metrics.leads(false);
                if stopped {
                    return leadership.release().await;
                }
            }
            select! {
                () = sleep(retry) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Takes the Lease if it is free.
    async fn take(&mut self) -> Option<Leadership> {
        let begun = Instant::now();
        let taken = self.try_take(begun).await;
        self.metrics.looked(taken.is_ok());
        match taken {
            Ok(Some(lease)) => {
                let holder = self.leases.identity.clone();
                tracing::info!(holder, lease = self.leases.name, "leads");
                self.told = Some(holder);
                let held = Mutex::new(Held { lease, renewed_at: begun, lost: false });
                Some(Leadership {
                    leases: self.leases.clone(),
                    held,
                    metrics: self.metrics.clone(),
                })
            }
            // Another one was faster, or has just deleted it.
            Ok(None) | Err(Failure::Conflict | Failure::Missing) => None,
            Err(Failure::Other(error)) => {
                let lease = &self.leases.name;
                tracing::warn!(
                    error,
                    lease,
                    "the Lease cannot be read or written: nobody here leads"
                );
                None
            }
        }
    }

    async fn try_take(&mut self, now: Instant) -> Result<Option<Lease>, Failure> {
        let Some(found) = self.leases.get().await? else {
            self.watched = None;
            return self.leases.create().await.map(Some);
        };
        let watched = Watched::seen(self.watched.take(), record(&found), now);
        let (free, holder) = (watched.is_free(now), watched.holder().to_owned());
        self.watched = Some(watched);
        if !free {
            if self.told.as_ref() != Some(&holder) {
                tracing::info!(holder, lease = self.leases.name, "another one leads");
                self.told = Some(holder);
            }
            return Ok(None);
        }
        let spec = self.leases.spec(found.spec.as_ref());
        self.leases.replace(Lease { spec: Some(spec), ..found }).await.map(Some)
    }
}

// === impl Leadership ===

impl Leadership {
    /// Renews the Lease until it is lost.
    async fn keep(&self) {
        let Terms { retry, .. } = self.leases.terms;
        loop {
            sleep(retry).await;
            let mut held = self.held.lock().await;
            if held.renewed_at.elapsed() >= retry {
                self.renew(&mut held).await;
            }
            // Also where a duty's question found it out: nobody would act, and nobody else could lead.
            if held.lost {
                return;
            }
        }
    }

    /// `false`: not this time; `held.lost`: not any more. What is lost is not renewed.
    async fn renew(&self, held: &mut Held) -> bool {
        if held.lost {
            return false;
        }
        let renewed = self.try_renew(held).await;
        self.metrics.looked(renewed);
        renewed
    }

    async fn try_renew(&self, held: &mut Held) -> bool {
        let Leases { terms, identity, .. } = &self.leases;
        let begun = Instant::now();
        let mut failure = match self.leases.renewed(&held.lease).await {
            Ok(lease) => {
                (held.lease, held.renewed_at) = (lease, begun);
                return true;
            }
            Err(failure) => failure,
        };
        // A renewal whose answer was lost has changed the version.
        if matches!(failure, Failure::Conflict | Failure::Missing) {
            match self.leases.get().await {
                Ok(Some(lease)) if record(&lease).holder == *identity => {
                    held.lease = lease;
                    match self.leases.renewed(&held.lease).await {
                        Ok(lease) => {
                            (held.lease, held.renewed_at) = (lease, begun);
                            return true;
                        }
                        Err(again) => failure = again,
                    }
                }
                Ok(_) => held.lost = true,
                Err(unread) => failure = unread,
            }
        }
        held.lost |= held.renewed_at.elapsed() >= terms.deadline;
        let lost = held.lost;
        tracing::warn!(error = %failure, lost, lease = self.leases.name, "the Lease was not renewed");
        false
    }

    /// Gives the Lease back, so that the next one need not wait for its end.
    async fn release(&self) {
        let held = self.held.lock().await;
        if held.lost {
            return;
        }
        let mut lease = held.lease.clone();
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match self.leases.replace(lease).await {
            Ok(_) => tracing::info!(lease = self.leases.name, "the Lease is given back"),
            Err(error) => tracing::warn!(%error, "the Lease is not given back: it ends by itself"),
        }
    }
}

impl Fence for Leadership {
    async fn confirm(&self) -> bool {
        let mut held = self.held.lock().await;
        let is_fresh = !held.lost && held.renewed_at.elapsed() < self.leases.terms.fresh;
        is_fresh || self.renew(&mut held).await
    }
}

// === impl Leases ===

impl Leases {
    async fn get(&self) -> Result<Option<Lease>, Failure> {
        match self.bounded(self.api.get(&self.name)).await {
            Err(Failure::Missing) => Ok(None),
            answer => answer.map(Some),
        }
    }

    async fn create(&self) -> Result<Lease, Failure> {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(self.spec(None)) };
        self.bounded(self.api.create(&PostParams::default(), &lease)).await
    }

    async fn renewed(&self, lease: &Lease) -> Result<Lease, Failure> {
        let mut lease = lease.clone();
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        self.replace(lease).await
    }

    /// Refused (409) unless the Lease has still the version that `lease` names.
    async fn replace(&self, lease: Lease) -> Result<Lease, Failure> {
        self.bounded(self.api.replace(&self.name, &PostParams::default(), &lease)).await
    }

    /// Ours from now on.
    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let secs = self.terms.duration.as_secs_f64().ceil();
        #[expect(clippy::cast_possible_truncation, reason = "seconds of a Lease: a small number")]
        let secs = secs as i32;
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(secs),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(
                before.map_or(0, |spec| spec.lease_transitions.unwrap_or_default() + 1),
            ),
            ..LeaseSpec::default()
        }
    }

    async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        match timeout(self.terms.call, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Failure::Missing),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Failure::Conflict),
            Ok(Err(error)) => Err(Failure::Other(veni_core::chain::chain(&error))),
            Err(_) => Err(Failure::Other(format!("no answer within {:?}", self.terms.call))),
        }
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let secs = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: std::time::Duration::from_secs(secs),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
