//! One question to ipamd over its socket.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;
use veni_core::wire::{
    MAX_REPLY_BYTES, Request, RequestBody,
    inspect::{Query, View},
};

mod lenient;

/// ipamd answers from memory, or, while it starts, after 2 s at most; longer than this and something is stuck.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a person does about a process that does not answer.
pub(crate) const HANGS: &str = "`ps -C veni-ipamd -o pid,stat,wchan` shows where it hangs (T: it was stopped, `kill -CONT PID` wakes it); look at \
     its log, and restart it if it stays so (running pods keep their network)";

/// Why ipamd did not answer, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unanswered {
    /// What happened.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) next_step: String,
    /// Nobody listens: it may not have come as far as the socket yet.
    pub(crate) is_absent: bool,
}

/// ipamd's view of the node.
///
/// # Errors
/// When it cannot be reached, refuses, hangs, or answers what cannot be read: with the next step.
pub(crate) fn inspect(socket: &Path, addresses: bool) -> Result<View, Unanswered> {
    let line = exchange(socket, &Request::new(RequestBody::Inspect(Query { addresses })))?;
    read_view(&line)
}

/// The view in a reply of this, an older or a newer ipamd.
pub(crate) fn read_view(line: &str) -> Result<View, Unanswered> {
    let other = "name ipamd's socket with --socket or VENI_SOCKET";
    let reply: Value = serde_json::from_str(line)
        .map_err(|error| Unanswered::new(format!("ipamd's answer is not JSON: {error}"), other))?;
    let text = |name: &str| reply.get(name).and_then(Value::as_str).unwrap_or("(none)");
    match text("result") {
        "inspect" => {}
        "error" => return Err(refusal(text("code"), text("message"))),
        result => {
            let what =
                format!("ipamd answered {result:?} to an inspect request: is this its socket?");
            return Err(Unanswered::new(what, other));
        }
    }
    let once = |mut view: View| {
        let mut seen = BTreeSet::new();
        view.plan.waiting_for.retain(|what| seen.insert(what.clone()));
        view
    };
    lenient::view(reply).map(once).map_err(|error| {
        let version = env!("CARGO_PKG_VERSION");
        let what = format!("ipamd's answer cannot be read by this venictl, {version}: {error}");
        Unanswered::new(what, "use the venictl that came with ipamd")
    })
}

/// In ipamd's words. One that starts says itself what it waits for and what to do.
fn refusal(code: &str, message: &str) -> Unanswered {
    if message.starts_with("starting") {
        return Unanswered::starting(message);
    }
    let what = format!("ipamd refused: {message} (code {code})");
    Unanswered::new(what, "try again; look at its log if it stays so")
}

fn exchange(socket: &Path, request: &Request) -> Result<String, Unanswered> {
    let failed = |error: &io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            hangs(socket, "takes the connection and does not answer")
        }
        _ => {
            let what = format!("cannot talk to ipamd at {}: {error}", socket.display());
            Unanswered::new(what, "try again; look at its log if it stays so")
        }
    };
    let mut stream = connect(socket)?;
    let bounded = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    bounded.map_err(|error| failed(&error))?;
    let mut line = serde_json::to_vec(request).map_err(|error| failed(&error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(|error| failed(&error))?;
    let mut answer = String::new();
    let limit = u64::try_from(MAX_REPLY_BYTES).expect("a constant of 8 MiB");
    match BufReader::new(stream.take(limit)).read_line(&mut answer) {
        Ok(0) => {
            let what =
                format!("ipamd at {} closed the connection without an answer", socket.display());
            Err(Unanswered::new(what, "look at its log"))
        }
        Ok(_) => Ok(answer),
        Err(error) => Err(failed(&error)),
    }
}

/// Where nobody accepts, connect(2) blocks once the queue is full, for as long as it is.
fn connect(socket: &Path) -> Result<UnixStream, Unanswered> {
    let (sender, connected) = mpsc::channel();
    let path = socket.to_owned();
    thread::spawn(move || drop(sender.send(UnixStream::connect(path))));
    match connected.recv_timeout(PATIENCE) {
        Ok(done) => done.map_err(|error| unreachable(socket, &error)),
        Err(_) => Err(hangs(socket, "takes no connection")),
    }
}

fn hangs(socket: &Path, how: &str) -> Unanswered {
    let (shown, secs) = (socket.display(), PATIENCE.as_secs());
    Unanswered::new(
        format!("ipamd hangs: its process is there, but at {shown} it {how} within {secs} s"),
        HANGS,
    )
}

fn unreachable(socket: &Path, error: &io::Error) -> Unanswered {
    let shown = socket.display();
    let absent = |what: String, next_step: &str| Unanswered {
        is_absent: true,
        ..Unanswered::new(what, next_step)
    };
    match error.kind() {
        io::ErrorKind::NotFound => absent(
            format!(
                "there is no socket at {shown}: ipamd does not run on this node, or listens elsewhere"
            ),
            "start it, or name its socket with --socket or VENI_SOCKET",
        ),
        // connect(2) refuses a file that is no socket in the same way.
        io::ErrorKind::ConnectionRefused if !is_socket(socket) => Unanswered::new(
            format!("{shown} is no socket"),
            "name ipamd's with --socket or VENI_SOCKET",
        ),
        io::ErrorKind::ConnectionRefused => absent(
            format!("nobody listens at {shown}: ipamd has stopped"),
            "look at its log and start it (running pods keep their network)",
        ),
        io::ErrorKind::PermissionDenied => Unanswered::new(
            format!("no permission to use {shown}: it is root's"),
            "run venictl as root",
        ),
        _ => Unanswered::new(
            format!("cannot connect to ipamd at {shown}: {error}"),
            "see that ipamd runs, and look at its log",
        ),
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

// === impl Unanswered ===

impl Unanswered {
    fn new(what: impl Into<String>, next_step: &str) -> Self {
        Self { what: what.into(), next_step: next_step.to_owned(), is_absent: false }
    }

    /// Out of what a daemon says that starts: `starting: waits for …; next step: …`.
    pub(crate) fn starting(message: &str) -> Self {
        let message = message.trim();
        let (what, next_step) = message
            .split_once("; next step: ")
            .unwrap_or((message, "wait, and look at its log if it stays so"));
        Self::new(format!("ipamd is {what}"), next_step)
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; next step: {}", self.what, self.next_step)
    }
}

impl std::error::Error for Unanswered {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_ipamds_words_with_its_next_step() {
        for (message, what, next_step) in [
            (
                "busy",
                "ipamd refused: busy (code not_ready)",
                "try again; look at its log if it stays so",
            ),
            (
                "starting: waits for EC2 for 12 s; last error (attempt 3): x; next step: check the route",
                "ipamd is starting: waits for EC2 for 12 s; last error (attempt 3): x",
                "check the route",
            ),
            ("starting", "ipamd is starting", "wait, and look at its log if it stays so"),
        ] {
            let reply = serde_json::json!({"version": 1, "result": "error", "code": "not_ready", "message": message});
            let error = read_view(&reply.to_string()).unwrap_err();
            assert_eq!((error.what.as_str(), error.next_step.as_str()), (what, next_step));
        }
    }

    #[test]
    fn a_daemon_that_accepts_and_never_answers_hangs_and_the_wait_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = inspect(&path, false).unwrap_err();
        assert!(error.what.starts_with("ipamd hangs"), "{error}");
        assert!(error.next_step.contains("restart it"), "{error}");
    }

    #[test]
    fn a_missing_socket_names_the_next_step() {
        let error = inspect(Path::new("/nonexistent/ipamd.sock"), false).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ipamd.sock") && error.contains("--socket"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_socket_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = inspect(file.path(), false).unwrap_err();
        assert!(error.what.ends_with("is no socket") && !error.is_absent, "{error}");
    }

    #[test]
    fn what_is_waited_for_is_told_once() {
        let reply = r#"{"version":1,"result":"inspect","plan":{"waiting_for":["x","y","x"]}}"#;
        assert_eq!(read_view(reply).unwrap().plan.waiting_for, ["x", "y"]);
    }

    #[test]
    fn a_stale_socket_is_told_from_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = inspect(&path, false).unwrap_err().to_string();
        assert!(error.contains("has stopped"), "{error}");
    }

    #[test]
    fn the_question_and_the_answer_are_one_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut question).unwrap();
            stream.write_all(b"{\"version\":1,\"result\":\"inspect\"}\n").unwrap();
            question
        });
        let view = inspect(&path, true).unwrap();
        assert_eq!(view.enis, []);
        let question: Request = serde_json::from_str(&server.join().unwrap()).unwrap();
        assert_eq!(question.body, RequestBody::Inspect(Query { addresses: true }));
    }
}
