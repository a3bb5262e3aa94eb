//! The daemon's side: a [`Cloud`](veni_provider::Cloud) behind a socket; and the tests' side, which asks the
//! simulator itself.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::{io::BufReader, net::UnixStream};
use veni_core::id::InstanceId;
use veni_provider::{
    CloudError, CloudResult, ErrorClass,
    call::{Answer, Call, Failure, Transport},
    sim::{Admin, AdminAnswer, CallCounts, CallRecord, Fault, SimState},
};

use crate::{
    line,
    message::{Reply, Request},
};

/// The cloud of one instance, behind a socket.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    instance: InstanceId,
}

/// Reaches the simulator itself.
#[derive(Debug, Clone)]
pub struct AdminClient {
    path: PathBuf,
}

/// Why an [`Admin`] request failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The simulator cannot be reached.
    #[error("cannot ask the simulator at {}: is it running?", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The simulator refuses, in its words.
    #[error("the simulator refuses: {0}")]
    Refused(String),
    /// The answer is to something else: both sides are of different versions.
    #[error("the simulator's answer does not fit the request: are both of the same version?")]
    Misfit,
}

async fn exchange(path: &Path, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(path).await?;
    line::write(&mut stream, request).await?;
    let answer = line::read(&mut BufReader::new(stream)).await?;
    let answer = answer.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    line::parse(&answer)
}

// === impl Client ===

impl Client {
    /// The cloud of `instance` behind the socket at `path`. Nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, instance: InstanceId) -> Self {
        Self { path: path.into(), instance }
    }
}

impl Transport for Client {
    /// A connection that cannot be made, or breaks, is [`ErrorClass::Transient`]: the effect is unknown.
    async fn carry(&self, call: Call) -> CloudResult<Answer> {
        let action = call.action();
        let transient = |code: &str, message: String| {
            CloudError::new(action, ErrorClass::Transient, code, message)
        };
        let request = Request::Call { instance: self.instance.clone(), call };
        match exchange(&self.path, &request).await {
            Ok(Reply::Answer(answer)) => Ok(answer),
            Ok(Reply::Failure(failure)) => Err(failure.of(action)),
            Ok(Reply::Refused(why)) => {
                Err(Failure::new(ErrorClass::Invalid, "MalformedRequest", why).of(action))
            }
            Ok(Reply::Admin(_)) => {
                Err(transient("MalformedAnswer", "the answer does not fit the call".into()))
            }
            Err(error) => {
                Err(transient("ConnectionFailed", format!("{}: {error}", self.path.display())))
            }
        }
    }
}

// === impl AdminClient ===

impl AdminClient {
    /// Reaches the simulator behind the socket at `path`. Nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Asks the simulator.
    ///
    /// # Errors
    /// When it cannot be reached or refuses.
    pub async fn ask(&self, request: Admin) -> Result<AdminAnswer, AdminError> {
        match exchange(&self.path, &Request::Admin(request)).await {
            Ok(Reply::Admin(answer)) => Ok(answer),
            Ok(Reply::Refused(why)) => Err(AdminError::Refused(why)),
            Ok(Reply::Answer(_) | Reply::Failure(_)) => Err(AdminError::Misfit),
            Err(source) => Err(AdminError::Io { path: self.path.clone(), source }),
        }
    }

    /// Puts a fault in force; the number takes it back.
    ///
    /// # Errors
    /// As [`AdminClient::ask`].
    pub async fn inject(&self, fault: Fault) -> Result<u64, AdminError> {
        match self.ask(Admin::Inject(fault)).await? {
            AdminAnswer::Fault(id) => Ok(id),
            _ => Err(AdminError::Misfit),
        }
    }

    /// How often each action was called.
    ///
    /// # Errors
    /// As [`AdminClient::ask`].
    pub async fn calls(&self) -> Result<CallCounts, AdminError> {
        match self.ask(Admin::Calls).await? {
            AdminAnswer::Calls(calls) => Ok(calls),
            _ => Err(AdminError::Misfit),
        }
    }

    /// The last calls one by one, oldest first.
    ///
    /// # Errors
    /// As [`AdminClient::ask`].
    pub async fn call_log(&self) -> Result<Vec<CallRecord>, AdminError> {
        match self.ask(Admin::CallLog).await? {
            AdminAnswer::CallLog(log) => Ok(log),
            _ => Err(AdminError::Misfit),
        }
    }

    /// The whole region as it really is.
    ///
    /// # Errors
    /// As [`AdminClient::ask`].
    pub async fn state(&self) -> Result<SimState, AdminError> {
        match self.ask(Admin::State).await? {
            AdminAnswer::State(state) => Ok(*state),
            _ => Err(AdminError::Misfit),
        }
    }
}
