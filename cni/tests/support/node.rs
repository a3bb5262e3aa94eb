//! A node and a pod in fresh network namespaces, and an ipamd that answers by rote.

#![allow(dead_code, reason = "each test uses another part of it")]

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use serde_json::{Value, json};
use veni_core::wire::{
    ErrorCode, Released, ReleasedAttachment, Reply, ReplyBody, Request, RequestBody, WireError,
    Wiring,
};
use veni_datapath::{
    netlink::{
        RouteNetlinkMessage, Socket,
        packet::{
            AddressFamily,
            link::{LinkAttribute, LinkMessage},
            route::{RouteFlags, RouteMessage},
        },
    },
    netns::NetNs,
    pod,
};

#[path = "../../../datapath/tests/support/wiring.rs"]
mod sample;

/// What the rote ipamd answers.
pub(crate) use sample::wiring;

/// The calling thread is in the node's namespace.
pub(crate) struct Node {
    pub(crate) host: Socket,
    pub(crate) pod: NetNs,
    pub(crate) inside: Socket,
    pub(crate) ipamd: FakeIpamd,
    directory: tempfile::TempDir,
}

/// Answers by rote; keeps an ADD's attachment to itself while its connection is open, as the protocol says.
#[derive(Clone)]
pub(crate) struct FakeIpamd(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    adding: (Mutex<bool>, Condvar),
}

/// What the daemon would hold, and what it was asked.
pub(crate) struct State {
    /// What an ADD gets; `None` refuses for want of an address.
    pub(crate) wiring: Option<Wiring>,
    /// Whether the attachment is allocated.
    pub(crate) allocated: bool,
    /// Whether connections are closed without an answer.
    pub(crate) hangs_up: bool,
    /// How long an answer takes.
    pub(crate) thinks: std::time::Duration,
    /// The version that answers are in.
    pub(crate) version: u32,
    /// Every request, in order.
    pub(crate) asked: Vec<RequestBody>,
    /// The connections of ADDs.
    adds: Vec<UnixStream>,
}

/// A finished call.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: Value,
}

// === impl Node ===

impl Node {
    fn new() -> Result<Self, veni_datapath::netns::Error> {
        let pod = thread::spawn(NetNs::unshare).join().unwrap()?;
        NetNs::unshare()?;
        let host = sample::node();
        let directory = tempfile::tempdir().unwrap();
        let ipamd = FakeIpamd::listen(&directory.path().join("ipamd.sock"));
        let inside = pod.socket()?;
        Ok(Self { host, pod, inside, ipamd, directory })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("ipamd.sock")
    }

    /// A path to the pod's namespace, good while this lives.
    pub(crate) fn netns(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.pod.as_fd().as_raw_fd())
    }

    pub(crate) fn config(&self) -> Value {
        json!({"cniVersion": "1.0.0", "name": "veni", "type": "veni-cni", "socket": self.socket()})
    }

    /// The configuration with more fields.
    pub(crate) fn config_with(&self, more: &Value) -> Value {
        let mut config = self.config();
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    pub(crate) fn environment(&self, command: &str) -> Vec<(&'static str, OsString)> {
        vec![
            ("CNI_COMMAND", command.into()),
            ("CNI_CONTAINERID", "c0ffee".into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_NETNS", self.netns().into()),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0".into()),
        ]
    }

    pub(crate) fn call(&self, command: &str) -> Outcome {
        self.call_with(command, &self.config())
    }

    pub(crate) fn call_with(&self, command: &str, config: &Value) -> Outcome {
        finish(start(&self.environment(command), config.to_string().as_bytes()))
    }

    /// ADD, which must succeed. Returns its result.
    pub(crate) fn add(&self) -> Value {
        let outcome = self.call("ADD");
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        outcome.stdout
    }

    pub(crate) fn assert_wired(&mut self) {
        let wiring = self.ipamd.with(|state| state.wiring.clone()).unwrap();
        self.assert_wired_as(&wiring);
    }

    pub(crate) fn assert_wired_as(&mut self, wiring: &Wiring) {
        let ifname = "eth0".parse().unwrap();
        let found = pod::verify(&mut self.host, &mut self.inside, wiring, &ifname).unwrap();
        assert_eq!(found, []);
    }

    /// Links and routes of the node and of the pod.
    pub(crate) fn state(&mut self) -> (Vec<String>, Vec<String>) {
        (state(&mut self.host), state(&mut self.inside))
    }
}

// === impl FakeIpamd ===

impl FakeIpamd {
    fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let state = State {
            wiring: Some(wiring()),
            allocated: false,
            hangs_up: false,
            thinks: std::time::Duration::ZERO,
            version: 1,
            asked: Vec::new(),
            adds: Vec::new(),
        };
        let adding = (Mutex::new(false), Condvar::new());
        let fake = Self(Arc::new(Shared { state: Mutex::new(state), adding }));
        let serving = fake.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let fake = serving.clone();
                thread::spawn(move || fake.serve(&stream.unwrap()));
            }
        });
        fake
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.state.lock().unwrap())
    }

    /// The operations that were asked for, in order.
    pub(crate) fn operations(&self) -> Vec<&'static str> {
        self.with(|state| {
            let name = |body: &RequestBody| match body {
                RequestBody::Add(_) => "add",
                RequestBody::Del(_) => "del",
                RequestBody::Check(_) => "check",
                RequestBody::Gc(_) => "gc",
                RequestBody::Status => "status",
                RequestBody::Inspect(_) => "inspect",
            };
            state.asked.iter().map(name).collect()
        })
    }

    /// Closes the connections of ADDs, as a daemon that ends does.
    pub(crate) fn hang_up(&self) {
        self.with(|state| {
            state.adds.drain(..).for_each(|add| add.shutdown(Shutdown::Both).unwrap())
        });
    }

    fn serve(&self, stream: &UnixStream) {
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let request: Request = serde_json::from_str(&line).unwrap();
        self.with(|state| state.asked.push(request.body.clone()));
        if self.with(|state| state.hangs_up) {
            return;
        }
        let (adding, changed) = &self.0.adding;
        if !matches!(request.body, RequestBody::Status | RequestBody::Gc(_)) {
            let adding = adding.lock().unwrap();
            *changed.wait_while(adding, |adding| *adding).unwrap() =
                matches!(request.body, RequestBody::Add(_));
        }
        thread::sleep(self.with(|state| state.thinks));
        let reply = self.with(|state| state.answer(&request.body));
        let mut reply = serde_json::to_vec(&reply).unwrap();
        reply.push(b'\n');
        if matches!(request.body, RequestBody::Add(_)) {
            self.with(|state| state.adds.push(stream.try_clone().unwrap()));
        }
        // A plugin that was killed does not read its answer.
        drop((&*stream).write_all(&reply));
        if matches!(request.body, RequestBody::Add(_)) {
            drop(reader.read(&mut [0]));
            *adding.lock().unwrap() = false;
            changed.notify_all();
        }
    }
}

// === impl State ===

impl State {
    fn answer(&mut self, body: &RequestBody) -> Reply {
        let refusal =
            |code, message: &str| ReplyBody::Error(WireError { code, message: message.to_owned() });
        let body = match body {
            RequestBody::Add(_) => match &self.wiring {
                Some(wiring) => {
                    self.allocated = true;
                    ReplyBody::Wiring(Box::new(wiring.clone()))
                }
                None => {
                    refusal(ErrorCode::NoAddress, "subnet-1 has no free addresses; add a subnet")
                }
            },
            RequestBody::Check(_) => match &self.wiring {
                Some(wiring) if self.allocated => ReplyBody::Wiring(Box::new(wiring.clone())),
                _ => refusal(
                    ErrorCode::UnknownAttachment,
                    "no address is assigned to this attachment",
                ),
            },
            RequestBody::Del(del) => ReplyBody::Released(self.release(Some(&del.attachment))),
            RequestBody::Gc(gc) => {
                assert_eq!(gc.network.as_str(), "veni");
                ReplyBody::Released(self.release(None))
            }
            RequestBody::Status if self.wiring.is_some() => ReplyBody::Ready,
            RequestBody::Status => refusal(ErrorCode::NotReady, "the pool is empty"),
            RequestBody::Inspect(_) => refusal(ErrorCode::BadRequest, "not here"),
        };
        Reply { version: self.version, body }
    }

    fn release(&mut self, attachment: Option<&veni_core::wire::Attachment>) -> Released {
        let Some(wiring) = self.wiring.clone().filter(|_| self.allocated) else {
            return Released::default();
        };
        self.allocated = false;
        let attachment = attachment.cloned().unwrap_or_else(|| veni_core::wire::Attachment {
            network: "veni".parse().unwrap(),
            container_id: "c0ffee".parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        });
        let Wiring { address, host_ifname, .. } = wiring;
        Released { released: vec![ReleasedAttachment { attachment, address, host_ifname }] }
    }
}

/// Runs `test` on a fresh node, unless this machine cannot have one.
pub(crate) fn on_a_node(test: impl FnOnce(Node) + Send + 'static) {
    let run = || match Node::new() {
        Ok(node) => test(node),
        Err(error) => match error.missing_feature() {
            Some(missing) => println!("SKIPPED: {missing}"),
            None => panic!("{error:?}"),
        },
    };
    thread::spawn(run).join().unwrap();
}

/// Starts the plugin in the calling thread's namespace, with nothing but `environment`.
pub(crate) fn start(environment: &[(&str, OsString)], stdin: &[u8]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_veni-cni"))
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may refuse before it has read everything.
    drop(child.stdin.take().unwrap().write_all(stdin));
    child
}

/// Waits for the plugin. Its standard error must be silent, and its standard output one JSON object or nothing.
pub(crate) fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let stdout = match output.stdout.as_slice() {
        [] => Value::Null,
        text => serde_json::from_slice(text).unwrap(),
    };
    Outcome { code: output.status.code(), signal: output.status.signal(), stdout }
}

/// A namespace's path that was good once.
pub(crate) fn vanished_netns() -> String {
    // Of a process that has ended: an open file's number would soon be another test's.
    let mut gone = Command::new("true").spawn().unwrap();
    let path = format!("/proc/{}/ns/net", gone.id());
    gone.wait().unwrap();
    path
}

fn state(socket: &mut Socket) -> Vec<String> {
    let mut all = RouteMessage::default();
    all.header.address_family = AddressFamily::Inet;
    let mut state = socket
        .dump(RouteNetlinkMessage::GetRoute(all), |message| match message {
            RouteNetlinkMessage::NewRoute(mut route) => {
                // The carrier's state reaches the routes later, by a work queue.
                route.header.flags = RouteFlags::empty();
                Some(format!("{:?} {:?}", route.header, route.attributes))
            }
            _ => None,
        })
        .unwrap();
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = socket.dump(links, |message| match message {
        RouteNetlinkMessage::NewLink(link) => {
            Some(link.attributes.into_iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })?)
        }
        _ => None,
    });
    state.extend(links.unwrap());
    state
}
