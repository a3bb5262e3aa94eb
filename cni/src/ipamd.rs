//! The plugin's side of the conversation with ipamd: one request, one reply, a deadline for both.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};
use veni_core::wire::{
    ErrorCode, MAX_REPLY_BYTES, Reply, ReplyBody, Request, RequestBody, VERSIONS, WireError,
};

/// Between two tries to connect. There is no waiting for the socket's next owner by inotify: a user has 128 instances of it
/// (`fs.inotify.max_user_instances`), and a burst of ADDs would take the kubelet's.
const AGAIN: Duration = Duration::from_millis(50);

/// An open conversation. While it is open after an ADD, ipamd keeps others from the same attachment.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
    deadline: Instant,
    patience: Duration,
}

/// Why ipamd gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody ever listened, or the daemon removed its socket when it stopped.
    #[error(
        "ipamd is not running: its socket {} does not exist; start veni-ipamd on this node, or name its socket in the \
         network configuration (`socket`); its log, on its standard output, says why it ended", socket.display()
    )]
    Missing {
        /// Where it should be.
        socket: PathBuf,
    },
    /// The daemon died and left its socket.
    #[error(
        "ipamd does not listen on its socket {}: it stopped or is starting; its log, on its standard \
         output, says why; `venictl doctor` on this node looks at what it needs", socket.display()
    )]
    Refused {
        /// Where it should listen.
        socket: PathBuf,
    },
    /// The socket cannot be reached for another reason.
    #[error("connecting to ipamd at {}", socket.display())]
    Connect {
        /// Where to.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The daemon takes too long.
    #[error("ipamd did not answer within {} s; `venictl status` on this node shows what it waits for", after.as_secs())]
    Timeout {
        /// How long it had.
        after: Duration,
    },
    /// The daemon hung up without an answer.
    #[error(
        "ipamd closed the connection without an answer: it was restarted or refused the request"
    )]
    Closed,
    /// The plugin was held up for so long that the daemon may have given the address to another pod.
    #[error(
        "this plugin was held up for more than {} s, and ipamd was replaced meanwhile: the address may be another pod's, the \
         runtime tries again", after.as_secs()
    )]
    Lost {
        /// How long it had.
        after: Duration,
    },
    /// Reading or writing failed.
    #[error("talking to ipamd")]
    Exchange(#[source] io::Error),
    /// The answer does not end.
    #[error("ipamd's answer is longer than {MAX_REPLY_BYTES} bytes")]
    TooLong,
    /// The answer is not one of ours.
    #[error("ipamd's answer cannot be read; plugin and daemon may be of different releases")]
    Unreadable(#[source] serde_json::Error),
    /// No common protocol version.
    #[error(
        "plugin and ipamd are of different releases: this plugin speaks versions {} to {} of their protocol; {message}; \
         install both from one release", VERSIONS.min, VERSIONS.max
    )]
    Version {
        /// What the daemon says.
        message: String,
    },
    /// The daemon did what it was asked, and says so in words that we do not know.
    #[error(
        "plugin and ipamd are of different releases: ipamd answered in version {version} of their protocol, this plugin \
         speaks {} to {}; install both from one release", VERSIONS.min, VERSIONS.max
    )]
    ForeignVersion {
        /// The answer's.
        version: u32,
    },
    /// The answer is to another question.
    #[error("ipamd answered another question than the one that was asked")]
    Unexpected,
    /// The daemon refuses, and says why.
    #[error("{}", .0.message)]
    Denied(WireError),
}

// === impl Conversation ===

impl Conversation {
    /// Connects, and gives ipamd `patience` for everything that follows.
    ///
    /// # Errors
    /// Distinct for a missing socket and for one that nobody listens on.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + patience;
        let failed = |errno: Errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => Error::Missing { socket: path.to_owned() },
            Errno::ECONNREFUSED => Error::Refused { socket: path.to_owned() },
            Errno::EAGAIN => Error::Timeout { after: patience },
            other => Error::Connect { socket: path.to_owned(), source: other.into() },
        };
        let fd: OwnedFd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
                .map_err(failed)?;
        // The one for sending bounds connect() too, which waits while the daemon's backlog is full (unix(7)).
        let limit = timeval(patience);
        setsockopt(&fd, sockopt::SendTimeout, &limit).map_err(failed)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        loop {
            match connect(fd.as_raw_fd(), &address) {
                // Stopped and continued (signal(7)): nothing has begun.
                Err(Errno::EINTR) if Instant::now() < deadline => {}
                connected => break connected.map_err(failed)?,
            }
        }
        Ok(Self { stream: UnixStream::from(fd), deadline, patience })
    }

    /// As [`Conversation::open`], but waits `absence` for a daemon that has left its socket: one that is replaced.
    ///
    /// # Errors
    /// As [`Conversation::open`].
    pub fn open_again(path: &Path, patience: Duration, absence: Duration) -> Result<Self, Error> {
        Self::open_until(path, patience, Instant::now() + absence, || thread::sleep(AGAIN))
    }

    /// Tries once, and again after each `pause`, while nobody listens.
    fn open_until(
        path: &Path,
        patience: Duration,
        until: Instant,
        mut pause: impl FnMut(),
    ) -> Result<Self, Error> {
        loop {
            match Self::open(path, patience) {
                Err(Error::Refused { .. }) if Instant::now() < until => pause(),
                opened => return opened,
            }
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Exchange`].
    pub fn ask(&mut self, body: RequestBody) -> Result<(), Error> {
        let mut line = serde_json::to_vec(&Request::new(body)).map_err(Error::Unreadable)?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(|error| self.failed(error))
    }

    /// Waits for the answer. A refusal is an error.
    ///
    /// # Errors
    /// [`Error::Denied`] with ipamd's own words, or whatever kept the answer from coming.
    pub fn answer(&mut self) -> Result<ReplyBody, Error> {
        let mut line = Vec::with_capacity(2048);
        let mut chunk = [0; 2048];
        while line.last() != Some(&b'\n') {
            match self.read(&mut chunk)? {
                0 if line.is_empty() => return Err(Error::Closed),
                0 => break,
                length => line.extend_from_slice(&chunk[..length]),
            }
            if line.len() > MAX_REPLY_BYTES {
                return Err(Error::TooLong);
            }
            // Each read has the whole patience; a trickle of them has not.
            if Instant::now() > self.deadline {
                return Err(Error::Timeout { after: self.patience });
            }
        }
        let reply: Reply = serde_json::from_slice(&line).map_err(Error::Unreadable)?;
        match reply.body {
            ReplyBody::Error(WireError { code: ErrorCode::Version, message }) => {
                Err(Error::Version { message })
            }
            ReplyBody::Error(refusal) => Err(Error::Denied(refusal)),
            _ if !(VERSIONS.min..=VERSIONS.max).contains(&reply.version) => {
                Err(Error::ForeignVersion { version: reply.version })
            }
            body => Ok(body),
        }
    }

    /// Reads some. A signal interrupts a read with a timeout, even one that is only stopped and continued (signal(7)).
    fn read(&mut self, chunk: &mut [u8]) -> Result<usize, Error> {
        loop {
            match self.stream.read(chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    let left = self.deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::Timeout { after: self.patience });
                    }
                    self.stream.set_read_timeout(Some(left)).map_err(Error::Exchange)?;
                }
                read => return read.map_err(|error| self.failed(error)),
            }
        }
    }

    /// Whether ipamd may have taken back what it answered: the time is over and it has closed the connection, so that it does not
    /// know of this plugin any more. Within the time it waits, whoever closed. (No system call then.)
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub fn still_held(&self) -> Result<(), Error> {
        if Instant::now() <= self.deadline && !held_up() {
            return Ok(());
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.stream.as_raw_fd(), &mut [0], flags) {
            Err(Errno::EAGAIN) => Ok(()),
            _ => Err(Error::Lost { after: self.patience }),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Error::Timeout { after: self.patience }
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Closed,
            _ => Error::Exchange(error),
        }
    }
}

/// Asks one question and waits for the answer.
///
/// # Errors
/// See [`Conversation`].
pub fn ask(path: &Path, patience: Duration, body: RequestBody) -> Result<ReplyBody, Error> {
    let mut conversation = Conversation::open(path, patience)?;
    conversation.ask(body)?;
    conversation.answer()
}

/// Whether a test has the plugin act as if its time were over: none waits for it.
#[cfg(feature = "fault-points")]
fn held_up() -> bool {
    std::env::var_os("VENI_FAULT_LATE").is_some()
}

/// Nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
const fn held_up() -> bool {
    false
}

fn timeval(duration: Duration) -> TimeVal {
    let secs = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    TimeVal::new(secs, i64::from(duration.subsec_micros()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn a_daemon_that_is_replaced_is_waited_for_and_one_that_never_was_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, next) = (dir.path().join("ipamd.sock"), dir.path().join("next"));
        let (patience, later) = (Duration::from_secs(5), Instant::now() + Duration::from_secs(60));
        let never = || panic!("it is not waited for");
        let open = |until, pause: &mut dyn FnMut()| {
            Conversation::open_until(&path, patience, until, pause)
        };
        assert!(matches!(open(later, &mut { never }), Err(Error::Missing { .. })));
        drop(UnixListener::bind(&path).unwrap());
        let refused = open(Instant::now(), &mut { never });
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        let mut listener = None;
        let mut pauses = 0;
        let opened = open(later, &mut || {
            pauses += 1;
            if pauses == 3 {
                listener = Some(UnixListener::bind(&next).unwrap());
                fs::rename(&next, &path).unwrap();
            }
        });
        assert!(opened.is_ok() && pauses == 3, "{opened:?} after {pauses} pauses");
    }

    #[test]
    fn an_answer_is_doubted_only_late_and_once_ipamd_has_hung_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let open = |patience| {
            let conversation = Conversation::open(&path, patience).unwrap();
            (conversation, listener.accept().unwrap().0)
        };
        let (early, daemon) = open(Duration::from_secs(60));
        drop(daemon);
        assert!(early.still_held().is_ok(), "ipamd may be replaced while a pod is wired");
        // No time at all, which to a socket is no limit.
        let (late, daemon) = open(Duration::ZERO);
        while Instant::now() <= late.deadline {
            std::hint::spin_loop();
        }
        assert!(late.still_held().is_ok(), "ipamd waits for this plugin");
        drop(daemon);
        assert!(matches!(late.still_held(), Err(Error::Lost { .. })));
    }
}
