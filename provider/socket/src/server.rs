//! The side that holds the region.

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::BufReader,
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use veni_core::id::InstanceId;
use veni_provider::{
    CloudResult,
    call::{Answer, Call, Transport},
    sim::{Admin, AdminAnswer, Sim, SimCloud, Timer},
};

use crate::{
    line,
    message::{Reply, Request},
};

/// Connections served at once; the next ones wait in the listener's backlog.
const CONNECTIONS: usize = 1_024;
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// A cloud call of `instance`.
    fn call(
        &self,
        instance: InstanceId,
        call: Call,
    ) -> impl Future<Output = CloudResult<Answer>> + Send;
    /// A request to the simulator itself; the error in words.
    fn admin(&self, request: Admin) -> Result<AdminAnswer, String>;
}

/// Answers for a simulator.
#[derive(Debug)]
pub struct SimHandler<T> {
    sim: Arc<Mutex<Sim>>,
    timer: Arc<T>,
}

// === impl SimHandler ===

impl<T: Timer> SimHandler<T> {
    /// Answers for `sim`, in the time of `timer`.
    #[must_use]
    pub fn new(sim: Arc<Mutex<Sim>>, timer: Arc<T>) -> Self {
        Self { sim, timer }
    }
}

impl<T: Timer> Handler for SimHandler<T> {
    async fn call(&self, instance: InstanceId, call: Call) -> CloudResult<Answer> {
        SimCloud::new(Arc::clone(&self.sim), Arc::clone(&self.timer), instance).carry(call).await
    }

    fn admin(&self, request: Admin) -> Result<AdminAnswer, String> {
        let mut sim = self.sim.lock().unwrap_or_else(PoisonError::into_inner);
        sim.admin(self.timer.now(), request).map_err(|error| error.to_string())
    }
}

/// Serves `handler` on `listener` until the future is dropped. Connections that are open then serve on until their
/// clients close them or the runtime ends.
pub async fn serve<H: Handler>(listener: UnixListener, handler: Arc<H>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit =
            Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &*handler).await {
                        tracing::debug!(%error, "a connection to the simulator ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the simulator cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection: request, answer, request, answer…
async fn converse(stream: UnixStream, handler: &impl Handler) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    while let Some(line) = line::read(&mut reader).await? {
        let reply = match line::parse(&line) {
            Ok(request) => answer(request, handler).await,
            Err(error) => Reply::Refused(error.to_string()),
        };
        line::write(&mut writer, &reply).await?;
    }
    Ok(())
}

async fn answer(request: Request, handler: &impl Handler) -> Reply {
    match request {
        Request::Call { instance, call } => match handler.call(instance, call).await {
            Ok(answer) => Reply::Answer(answer),
            Err(error) => Reply::Failure(error.into()),
        },
        Request::Admin(request) => handler.admin(request).map_or_else(Reply::Refused, Reply::Admin),
    }
}
