//! What the test's pods do: answer who they are, send bytes back, swallow a stream.

use std::{
    convert::Infallible,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;

use super::probe::Identity;

/// First byte of a connection: who are you?
pub(super) const WHO: u8 = b'i';
/// Every byte after this one comes back.
pub(super) const ECHO: u8 = b'e';
/// All after this one is swallowed; how many bytes that were is the answer.
pub(super) const SINK: u8 = b's';

/// One that says nothing for so long is left.
const SILENCE: Duration = Duration::from_secs(30);
const CHUNK: usize = 128 * 1024;

/// Answers until the process ends.
pub(super) fn serve(ports: &[u16]) -> anyhow::Result<Infallible> {
    let name: Arc<str> = std::env::var("POD_NAME").unwrap_or_else(|_| "unnamed".to_owned()).into();
    let mut last = None;
    for port in ports {
        let (listener, socket) = bind(*port).with_context(|| format!("listening on {port}"))?;
        let named = name.clone();
        thread::spawn(move || datagrams(&socket, &named));
        let named = name.clone();
        last = Some(thread::spawn(move || connections(&listener, &named)));
    }
    let serving = last.context("no port to listen on")?;
    drop(serving.join());
    anyhow::bail!("nobody listens any more")
}

/// IPv4 and IPv6 where the pod has both.
fn bind(port: u16) -> io::Result<(TcpListener, UdpSocket)> {
    let any =
        [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), (Ipv4Addr::UNSPECIFIED, port).into()];
    Ok((TcpListener::bind(&any[..])?, UdpSocket::bind(&any[..])?))
}

fn datagrams(socket: &UdpSocket, name: &str) {
    let mut question = [0; 64];
    loop {
        // An error is one of an earlier answer (a port that is gone), and none of the socket.
        let Ok((_, peer)) = socket.recv_from(&mut question) else { continue };
        drop(socket.send_to(&identity(name, peer), peer));
    }
}

fn connections(listener: &TcpListener, name: &Arc<str>) {
    for stream in listener.incoming().flatten() {
        let name = name.clone();
        // Who does not ask to the end goes without an answer.
        thread::spawn(move || drop(answer(stream, &name)));
    }
}

/// Answers one connection by its first byte.
pub(super) fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    match first[0] {
        WHO => stream.write_all(&identity(name, stream.peer_addr()?)),
        ECHO => echo(&mut stream),
        SINK => {
            let mut total: u64 = 0;
            let mut chunk = vec![0; CHUNK];
            loop {
                match stream.read(&mut chunk)? {
                    0 => break,
                    read => total += read as u64,
                }
            }
            stream.write_all(&total.to_be_bytes())
        }
        _ => Ok(()),
    }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 512];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            read => stream.write_all(&bytes[..read])?,
        }
    }
}

/// The answer to [`WHO`]. A peer over IPv4 is one, whatever the socket's family.
fn identity(pod: &str, peer: SocketAddr) -> Vec<u8> {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    serde_json::to_vec(&Identity { pod: pod.to_owned(), peer }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connectivity::probe::{Answer, Question, What, ask};

    /// A pod's listeners on a free port of the loopback.
    fn pod(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(address).unwrap();
        thread::spawn(move || datagrams(&socket, name));
        thread::spawn(move || connections(&listener, &name.into()));
        address
    }

    #[test]
    fn a_pod_says_who_it_is_over_tcp_and_udp_and_whom_it_sees() {
        let address = pod("server-a");
        let time = Duration::from_secs(5);
        let answers = ask(&[What::Tcp, What::Udp].map(|what| Question::new(what, address, time)));
        for answer in answers {
            let Answer::Pod(identity) = &answer else { panic!("{answer:?}") };
            assert_eq!(identity.pod, "server-a");
            assert!(identity.peer.ip().is_loopback(), "{answer:?}");
        }
    }

    #[test]
    fn nobody_and_somebody_else_are_told_apart_from_a_pod() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = stranger.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in stranger.incoming().flatten() {
                // What is unread when it closes would reset the connection.
                let mut first = [0];
                drop(
                    stream
                        .read_exact(&mut first)
                        .and_then(|()| stream.write_all(b"HTTP/1.1 400\r\n")),
                );
            }
        });
        let time = Duration::from_millis(300);
        let heard = |what, to: SocketAddr| ask(&[Question::new(what, to, time)]).remove(0);
        let nothing = |answer: &Answer, words: &str| match answer {
            Answer::Nothing(why) => assert!(why.contains(words), "{why}"),
            _ => panic!("{answer:?}"),
        };
        nothing(&heard(What::Tcp, silent), "refused");
        nothing(&heard(What::Connect, silent), "refused");
        nothing(&heard(What::Udp, silent), "refused");
        nothing(&heard(What::Tcp, other), "no pod of the test");
        assert_eq!(heard(What::Connect, other), Answer::Connected);
    }

    #[test]
    fn latency_connections_and_throughput_are_measured() {
        let address = pod("server-a");
        let time = Duration::from_millis(100);
        let questions = [What::Latency, What::Connections, What::Throughput]
            .map(|what| Question::new(what, address, time));
        let answers = ask(&questions);
        for answer in &answers[..2] {
            let Answer::Times(times) = answer else { panic!("{answer:?}") };
            assert!(times.count > 0 && times.p50_micros > 0.0, "{times:?}");
            assert!(times.p50_micros <= times.p99_micros, "{times:?}");
        }
        let Answer::BitsPerSec(speed) = answers[2] else { panic!("{answers:?}") };
        assert!(speed > 1e6, "{speed}");
    }
}
