//! The time before the daemon serves: what it waits for, and what it answers meanwhile.
//!
//! Socket and HTTP are open before instance metadata and EC2 have answered: whoever asks is told what is waited for,
//! since when, what failed last and what to do (docs/adr/0015). Invariants: nothing is allocated or released in this
//! time; a request is held for [`PATIENCE`], by which a start is over unless the cloud is slow, and refused then; those
//! that are still held go to the owner in the order in which they came. What the cloud refuses is tried again for ever.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use veni_core::wire::{ErrorCode, ReplyBody, WireError};
use veni_provider::CloudResult;

use crate::{executor, owner::Command};

/// How long a request waits for the start: shorter than a plugin's patience with a DEL.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest wait between two attempts.
const LONGEST: Duration = Duration::from_secs(10);
/// Each attempt is bounded to a minute: a start without any for so long hangs.
const STUCK: Duration = Duration::from_secs(300);

/// Where a start stands: shared by the start itself and by those who are asked.
#[derive(Debug, Clone)]
pub struct Startup {
    stage: Arc<Mutex<Stage>>,
}

#[derive(Debug)]
struct Stage {
    what: &'static str,
    next: &'static str,
    since: Instant,
    /// When it was tried last; `None` for what is waited for as long as it takes.
    tried: Option<Instant>,
    attempts: u32,
    last_error: Option<String>,
}

struct HeldBack {
    until: Instant,
    command: Command,
}

// === impl Startup ===

impl Default for Startup {
    fn default() -> Self {
        Self { stage: Arc::new(Mutex::new(Stage::new("the kernel and the journal", "none"))) }
    }
}

impl fmt::Display for Startup {
    /// One line for people: `starting: waits for … for 12 s; last error (attempt 5): …; next step: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.stage();
        write!(f, "starting: waits for {} for {} s", stage.what, stage.since.elapsed().as_secs())?;
        if let Some(error) = &stage.last_error {
            write!(f, "; last error (attempt {}): {error}", stage.attempts)?;
        }
        write!(f, "; next step: {}", stage.next)
    }
}

impl Startup {
    /// From now on `what` is waited for, once; `next` is what a person does when it does not come.
    pub fn waits_for(&self, what: &'static str, next: &'static str) {
        *self.stage() = Stage::new(what, next);
    }

    /// As [`Startup::waits_for`] for what another process decides: it may take as long as it takes.
    pub fn waits_patiently(&self, what: &'static str, next: &'static str) {
        *self.stage() = Stage { tried: None, ..Stage::new(what, next) };
    }

    /// Asks the cloud until it answers.
    pub async fn persist<T, F: Future<Output = CloudResult<T>>>(
        &self,
        what: &'static str,
        next: &'static str,
        ask: impl Fn() -> F,
    ) -> T {
        self.waits_for(what, next);
        let mut wait = Duration::from_millis(50);
        loop {
            match executor::bounded(what, ask()).await {
                Ok(answer) => return answer,
                Err(error) => {
                    tracing::warn!(%error, next, retry_millis = wait.as_millis(), "{what} not read");
                    self.failed(&error);
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST);
        }
    }

    /// Whether it has made no attempt for so long that it hangs.
    #[must_use]
    pub fn stuck(&self) -> bool {
        self.stage().tried.is_some_and(|at| at.elapsed() >= STUCK)
    }

    /// Runs the start, and answers for it meanwhile. With its outcome, what was not answered yet: the owner's.
    pub async fn answer_while<T>(
        &self,
        requests: &mut mpsc::Receiver<Command>,
        start: impl Future<Output = T>,
    ) -> (T, VecDeque<Command>) {
        let mut held: VecDeque<HeldBack> = VecDeque::new();
        let mut start = std::pin::pin!(start);
        loop {
            let expiry = held.front().map(|first| first.until);
            let expired = async {
                match expiry {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                outcome = &mut start => {
                    return (outcome, held.into_iter().map(|held| held.command).collect());
                }
                Some(command) = requests.recv() => match command {
                    Command::Status(reply) | Command::Inspect(_, reply) => self.refuse(reply),
                    command => held.push_back(HeldBack { until: Instant::now() + PATIENCE, command }),
                },
                () = expired => {
                    if let Some(HeldBack { command, .. }) = held.pop_front() {
                        self.give_up(command);
                    }
                }
            }
        }
    }

    fn give_up(&self, command: Command) {
        match command {
            Command::Add(_, _, reply)
            | Command::Del(_, _, reply)
            | Command::Check(_, reply)
            | Command::Gc(_, reply)
            | Command::Status(reply)
            | Command::Inspect(_, reply) => self.refuse(reply),
            // Its ADD came before it, and is refused.
            Command::AddClosed(..) => {}
        }
    }

    fn refuse(&self, reply: oneshot::Sender<ReplyBody>) {
        let refusal = WireError { code: ErrorCode::NotReady, message: self.to_string() };
        // Who does not listen any more needs no answer.
        drop(reply.send(ReplyBody::Error(refusal)));
    }

    fn failed(&self, error: &dyn fmt::Display) {
        let mut text = String::new();
        write!(text, "{error}").expect("writing to a string cannot fail");
        let mut stage = self.stage();
        stage.last_error = Some(text);
        stage.attempts += 1;
        stage.tried = Some(Instant::now());
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Stage ===

impl Stage {
    fn new(what: &'static str, next: &'static str) -> Self {
        let now = Instant::now();
        Self { what, next, since: now, tried: Some(now), attempts: 0, last_error: None }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use veni_provider::{CloudError, ErrorClass};

    use super::*;

    fn unavailable() -> CloudError {
        CloudError::new("metadata", ErrorClass::Transient, "Timeout", "no route to host")
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_says_what_it_waits_for_since_when_and_what_to_do() {
        let startup = Startup::default();
        let asked = AtomicU32::new(0);
        let ask = || async {
            if asked.fetch_add(1, Ordering::Relaxed) < 20 { Err(unavailable()) } else { Ok(7) }
        };
        let start = startup.persist("the identity", "look at metadata", ask);
        let (_commands, mut requests) = mpsc::channel(1);
        let told = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            startup.to_string()
        };
        let ((answer, _), told) = tokio::join!(startup.answer_while(&mut requests, start), told);
        assert_eq!(answer, 7);
        assert_eq!(
            told,
            "starting: waits for the identity for 60 s; last error (attempt 13): metadata failed: transient (Timeout: \
             no route to host); next step: look at metadata"
        );
        assert!(!startup.stuck());
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_never_ends_is_given_up_and_a_start_without_attempts_is_stuck() {
        let startup = Startup::default();
        let hangs = || std::future::pending::<CloudResult<()>>();
        let wait = Duration::from_secs(3600);
        let asking = startup.persist("the identity", "none", hangs);
        assert!(tokio::time::timeout(wait, asking).await.is_err());
        assert!(!startup.stuck(), "it is tried again and again: {startup}");
        assert!(startup.to_string().contains("no answer within 60 s"), "{startup}");
        for (patient, expect) in [(true, false), (false, true)] {
            if patient {
                startup.waits_patiently("the other ipamd", "end it");
            } else {
                startup.waits_for("a call", "none");
            }
            tokio::time::sleep(wait).await;
            assert_eq!(startup.stuck(), expect, "{startup}");
        }
    }
}
