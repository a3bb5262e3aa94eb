//! Wiring pods in fresh network namespaces, read back from the kernel.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![expect(clippy::print_stdout, reason = "what was skipped is said")]

use std::{net::Ipv4Addr, thread};

use veni_core::{id::IfName, wire::Wiring};
use veni_datapath::{
    netlink::{
        OWN_PROTOCOL, Request, RouteNetlinkMessage, Socket,
        packet::{
            AddressFamily,
            address::AddressMessage,
            link::{LinkAttribute, LinkFlags, LinkMessage},
            route::{RouteFlags, RouteMessage, RouteProtocol},
            tc::TcMessage,
        },
    },
    netns::{self, NetNs},
    pod::{self, Error},
};

#[path = "support/wiring.rs"]
mod wiring;

use wiring::wiring;

/// A node's namespace, which the calling thread is in, and a pod's.
struct Lab {
    host: Socket,
    pod: NetNs,
    inside: Socket,
}

impl Lab {
    fn new() -> Result<Self, netns::Error> {
        let pod = thread::spawn(NetNs::unshare).join().unwrap()?;
        NetNs::unshare()?;
        let host = wiring::node();
        let inside = pod.socket()?;
        Ok(Self { host, pod, inside })
    }

    fn wire(&mut self, wiring: &Wiring) -> Result<pod::Wired, Error> {
        self.wire_as(wiring, "eth0")
    }

    fn wire_as(&mut self, wiring: &Wiring, ifname: &str) -> Result<pod::Wired, Error> {
        let Self { host, pod, inside } = self;
        pod::wire(host, inside, pod, wiring, &ifname.parse().unwrap())
    }

    fn differences(&mut self, wiring: &Wiring) -> Vec<String> {
        let found = pod::verify(&mut self.host, &mut self.inside, wiring, &eth0()).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    fn host_end(&mut self, ifname: &str) -> Option<IfName> {
        pod::host_end(&mut self.host, &mut self.inside, &ifname.parse().unwrap()).unwrap()
    }

    fn pod_socket(&self) -> Socket {
        self.pod.socket().unwrap()
    }

    /// Everything that a pod could leave behind.
    fn state(&mut self) -> (Vec<String>, Vec<String>) {
        (state(&mut self.host), state(&mut self.pod_socket()))
    }
}

fn in_lab(test: impl FnOnce(Lab) + Send + 'static) {
    let run = || match Lab::new() {
        Ok(lab) => test(lab),
        Err(error) => match error.missing_feature() {
            Some(missing) => println!("SKIPPED: {missing}"),
            None => panic!("{error:?}"),
        },
    };
    thread::spawn(run).join().unwrap();
}

fn state(socket: &mut Socket) -> Vec<String> {
    let mut links = socket
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |m| match m {
            RouteNetlinkMessage::NewLink(l) => {
                Some(format!("link {} {:?}", l.header.index, name(&l)))
            }
            _ => None,
        })
        .unwrap();
    let mut all = RouteMessage::default();
    all.header.address_family = AddressFamily::Inet;
    let routes = socket
        .dump(RouteNetlinkMessage::GetRoute(all), |m| match m {
            RouteNetlinkMessage::NewRoute(mut r) => {
                // The carrier's state reaches the routes later, by a work queue.
                r.header.flags = RouteFlags::empty();
                Some(format!("route {:?} {:?}", r.header, r.attributes))
            }
            _ => None,
        })
        .unwrap();
    let qdiscs = socket
        .dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), |m| match m {
            RouteNetlinkMessage::NewQueueDiscipline(q) => {
                Some(format!("qdisc {} {}", q.header.index, q.header.handle))
            }
            _ => None,
        })
        .unwrap();
    links.extend(routes);
    links.extend(qdiscs);
    links
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn eth0() -> IfName {
    "eth0".parse().unwrap()
}

#[test]
fn a_wired_pod_is_exactly_as_told() {
    in_lab(|mut lab| {
        let wiring = wiring();
        assert!(!lab.wire(&wiring).unwrap().existed);
        assert_eq!(lab.differences(&wiring), Vec::<String>::new());
        let (host, pod) = lab.state();
        assert!(host.contains(&"link 1048583 Some(\"eni0123456789a\")".to_owned()), "{host:#?}");
        assert!(pod.contains(&"link 1048583 Some(\"eth0\")".to_owned()), "{pod:#?}");
    });
}

#[test]
fn every_route_of_ours_bears_our_protocol() {
    in_lab(|mut lab| {
        lab.wire(&wiring()).unwrap();
        let ours = |socket: &mut Socket| {
            let mut all = RouteMessage::default();
            all.header.address_family = AddressFamily::Inet;
            let protocol = RouteProtocol::Other(OWN_PROTOCOL);
            socket
                .dump(RouteNetlinkMessage::GetRoute(all), |m| match m {
                    RouteNetlinkMessage::NewRoute(r) if r.header.protocol == protocol => Some(r),
                    _ => None,
                })
                .unwrap()
                .len()
        };
        assert_eq!(ours(&mut lab.host), 1);
        assert_eq!(ours(&mut lab.pod_socket()), 2);
    });
}

#[cfg(feature = "host")]
#[test]
fn the_kernels_routes_tell_which_addresses_pods_have() {
    in_lab(|mut lab| {
        let wiring = wiring();
        let pods = || veni_datapath::host::pod_routes(wiring.pod_table).unwrap();
        assert_eq!(pods(), []);
        lab.wire(&wiring).unwrap();
        assert_eq!(pods(), [(wiring.address, wiring.host_ifindex)]);
        assert_eq!(veni_datapath::host::pod_routes(wiring.pod_table + 1).unwrap(), []);
    });
}

#[test]
fn without_filters_there_is_no_qdisc_and_check_asks_for_none() {
    in_lab(|mut lab| {
        let wiring = Wiring { blocks: None, ..wiring() };
        lab.wire(&wiring).unwrap();
        assert_eq!(lab.differences(&wiring), Vec::<String>::new());
    });
}

#[test]
fn unwiring_leaves_nothing_and_succeeds_again() {
    in_lab(|mut lab| {
        let wiring = wiring();
        let before = lab.state();
        lab.wire(&wiring).unwrap();
        assert!(pod::unwire(&mut lab.host, &wiring.host_ifname).unwrap());
        assert!(!pod::unwire(&mut lab.host, &wiring.host_ifname).unwrap());
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn wiring_twice_keeps_the_first() {
    in_lab(|mut lab| {
        let wiring = wiring();
        lab.wire(&wiring).unwrap();
        let before = lab.state();
        assert!(lab.wire(&wiring).unwrap().existed);
        assert_eq!(lab.state(), before);
    });
}

/// Each change breaks one thing; CHECK names it, and wiring again makes it whole.
#[test]
fn check_names_what_is_broken_and_wiring_again_repairs_it() {
    type Break = fn(&mut Lab, &Wiring);
    let cases: [(&str, Break); 9] = [
        ("state of eth0", |lab, w| {
            let mut link = LinkMessage::default();
            link.header.index = w.host_ifindex;
            link.header.change_mask = LinkFlags::Up;
            lab.pod_socket()
                .transact(&[Request::plain(RouteNetlinkMessage::SetLink(link))])
                .unwrap();
        }),
        ("MTU of eth0", |lab, w| {
            set(&mut lab.pod_socket(), w.host_ifindex, LinkAttribute::Mtu(1400));
        }),
        ("MAC of eth0", |lab, w| {
            set(
                &mut lab.pod_socket(),
                w.host_ifindex,
                LinkAttribute::Address(vec![2, 0, 0, 0, 9, 9]),
            );
        }),
        ("MAC of eni0123456789a", |lab, w| {
            set(&mut lab.host, w.host_ifindex, LinkAttribute::Address(vec![2, 0, 0, 0, 9, 9]));
        }),
        ("route to the pod in table 7600", |lab, _| {
            delete_all(&mut lab.host, RouteKind::Route);
        }),
        ("address of eth0", |lab, _| delete_all(&mut lab.pod_socket(), RouteKind::Address)),
        ("default route in the pod", |lab, _| delete_all(&mut lab.pod_socket(), RouteKind::Route)),
        ("neighbour 169.254.1.1 in the pod", |lab, _| {
            delete_all(&mut lab.pod_socket(), RouteKind::Neighbour);
        }),
        ("ingress filter block", |lab, w| {
            let mut qdisc = TcMessage::with_index(w.host_ifindex.cast_signed());
            qdisc.header.parent = veni_datapath::netlink::packet::tc::TcHandle::CLSACT;
            lab.host
                .transact(&[Request::plain(RouteNetlinkMessage::DelQueueDiscipline(qdisc))])
                .unwrap();
        }),
    ];
    for (what, break_it) in cases {
        in_lab(move |mut lab| {
            let wiring = wiring();
            lab.wire(&wiring).unwrap();
            break_it(&mut lab, &wiring);
            let found = lab.differences(&wiring);
            assert!(found.iter().any(|d| d.starts_with(what)), "{what}: {found:?}");
            lab.wire(&wiring).unwrap();
            assert_eq!(lab.differences(&wiring), Vec::<String>::new(), "{what}");
        });
    }
}

#[derive(Clone, Copy, PartialEq)]
enum RouteKind {
    Route,
    Address,
    Neighbour,
}

/// Deletes every route of ours, every address or every neighbour entry.
fn delete_all(socket: &mut Socket, kind: RouteKind) {
    use veni_datapath::netlink::packet::neighbour::NeighbourMessage;
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    let ask = match kind {
        RouteKind::Route => RouteNetlinkMessage::GetRoute(route),
        RouteKind::Address => RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        RouteKind::Neighbour => RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
    };
    let doomed = socket
        .dump(ask, |message| match message {
            RouteNetlinkMessage::NewRoute(r)
                if r.header.protocol == RouteProtocol::Other(OWN_PROTOCOL) =>
            {
                Some(RouteNetlinkMessage::DelRoute(r))
            }
            RouteNetlinkMessage::NewAddress(a) if a.header.family == AddressFamily::Inet => {
                Some(RouteNetlinkMessage::DelAddress(a))
            }
            RouteNetlinkMessage::NewNeighbour(n) if n.header.family == AddressFamily::Inet => {
                Some(RouteNetlinkMessage::DelNeighbour(n))
            }
            _ => None,
        })
        .unwrap();
    assert!(!doomed.is_empty());
    for message in doomed {
        // Deleting the gateway's route takes the default route with it.
        match socket.transact(&[Request::plain(message)]) {
            Err(error) if !error.is_absent() => panic!("{error}"),
            _ => {}
        }
    }
}

fn set(socket: &mut Socket, index: u32, attribute: LinkAttribute) {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![attribute];
    socket.transact(&[Request::plain(RouteNetlinkMessage::SetLink(link))]).unwrap();
}

#[test]
fn a_stale_host_end_of_the_same_name_is_replaced() {
    in_lab(|mut lab| {
        let old =
            Wiring { host_ifindex: 0x10_0001, address: Ipv4Addr::new(10, 0, 0, 70), ..wiring() };
        lab.wire(&old).unwrap();
        lab.wire(&wiring()).unwrap();
        assert_eq!(lab.differences(&wiring()), Vec::<String>::new());
        assert!(lab.host.get_link_by_index(old.host_ifindex).unwrap().is_none());
    });
}

#[test]
fn a_taken_index_inside_the_pod_does_not_matter() {
    in_lab(|mut lab| {
        let wiring = wiring();
        // Another pair, whose pod end got the same index inside the pod.
        let other = Wiring { host_ifname: "other0".parse().unwrap(), ..wiring.clone() };
        lab.wire_as(&other, "net1").unwrap();
        delete_all(&mut lab.pod_socket(), RouteKind::Route);
        move_host_end_away(&mut lab, &other);
        lab.wire(&wiring).unwrap();
        assert_eq!(lab.differences(&wiring), Vec::<String>::new());
        let eth0 = lab.pod_socket().get_link_by_name("eth0").unwrap().unwrap();
        assert_ne!(eth0.header.index, wiring.host_ifindex);
    });
}

/// Moves `wiring`'s host end out of the node's namespace, so that only its pod end keeps the index.
fn move_host_end_away(lab: &mut Lab, wiring: &Wiring) {
    use std::os::fd::{AsFd, AsRawFd};
    let elsewhere = thread::spawn(NetNs::unshare).join().unwrap().unwrap();
    let fd = elsewhere.as_fd().as_raw_fd();
    set(&mut lab.host, wiring.host_ifindex, LinkAttribute::NetNsFd(fd));
    // The pair dies with its namespace: keep it for as long as the process lives.
    std::mem::forget(elsewhere);
}

#[test]
fn an_interface_that_is_not_ours_in_the_pod_is_an_error_and_stays() {
    in_lab(|mut lab| {
        let foreign = Wiring {
            host_ifname: "foreign0".parse().unwrap(),
            host_ifindex: 0x10_0001,
            address: Ipv4Addr::new(10, 0, 0, 70),
            ..wiring()
        };
        lab.wire(&foreign).unwrap();
        let before = lab.state();
        let error = lab.wire(&wiring()).unwrap_err();
        assert!(matches!(error, Error::PodNameTaken { .. }), "{error:?}");
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn a_taken_index_on_the_node_is_an_error_that_names_the_holder() {
    in_lab(|mut lab| {
        let holder = Wiring {
            host_ifname: "holder0".parse().unwrap(),
            address: Ipv4Addr::new(10, 0, 0, 70),
            ..wiring()
        };
        lab.wire_as(&holder, "net1").unwrap();
        let before = lab.state();
        let error = lab.wire(&wiring()).unwrap_err();
        assert!(
            matches!(&error, Error::IndexTaken { holder, .. } if holder == "holder0"),
            "{error:?}"
        );
        assert_eq!(lab.state(), before);
    });
}

/// A link that has the index and no qdisc gets none, nor a route: the filter would drop all that it sends.
#[test]
fn a_foreign_link_with_the_index_is_left_as_it_is() {
    in_lab(|mut lab| {
        let holder = Wiring {
            host_ifname: "holder0".parse().unwrap(),
            address: Ipv4Addr::new(10, 0, 0, 70),
            blocks: None,
            ..wiring()
        };
        lab.wire_as(&holder, "net1").unwrap();
        let before = lab.state();
        let error = lab.wire(&wiring()).unwrap_err();
        assert!(matches!(error, Error::IndexTaken { .. }), "{error:?}");
        assert!(error.to_string().contains("holder0, which is left alone"), "{error}");
        assert_eq!(lab.state(), before);
    });
}

/// What is there already is told with what to do about it.
#[test]
fn what_another_has_made_is_named_with_a_next_step() {
    in_lab(|mut lab| {
        let other =
            Wiring { host_ifname: "other0".parse().unwrap(), host_ifindex: 0x10_0001, ..wiring() };
        lab.wire_as(&other, "net1").unwrap();
        let before = lab.state();
        let error = lab.wire(&wiring()).unwrap_err();
        assert!(matches!(&error, Error::Occupied { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("adding the route to the pod for eni0123456789a"), "{text}");
        assert!(text.contains("`ip route show table 7600 10.0.0.77`"), "{text}");
        assert_eq!(lab.state(), before);
    });
}

/// A source address that the node does not have: the route is refused after the pair was made.
#[test]
fn a_refusal_on_the_node_undoes_the_pair() {
    in_lab(|mut lab| {
        let before = lab.state();
        let bad = Wiring { node_address: Ipv4Addr::new(192, 0, 2, 1), ..wiring() };
        let error = lab.wire(&bad).unwrap_err();
        assert!(error.to_string().starts_with("adding the route to the pod"), "{error}");
        assert_eq!(lab.state(), before);
    });
}

/// The pod already has a route to the gateway, by another interface: refused after the pair was made.
#[test]
fn a_refusal_in_the_pod_undoes_the_pair() {
    in_lab(|mut lab| {
        let other = Wiring {
            host_ifname: "other0".parse().unwrap(),
            host_ifindex: 0x10_0001,
            address: Ipv4Addr::new(10, 0, 0, 70),
            ..wiring()
        };
        lab.wire_as(&other, "net1").unwrap();
        let before = lab.state();
        let error = lab.wire(&wiring()).unwrap_err();
        assert!(error.to_string().starts_with("adding the route to the gateway"), "{error}");
        assert_eq!(lab.state(), before);
    });
}

#[test]
fn the_host_end_is_found_from_inside_the_pod() {
    in_lab(|mut lab| {
        let wiring = wiring();
        assert_eq!(lab.host_end("eth0"), None);
        lab.wire(&wiring).unwrap();
        let found = lab.host_end("eth0");
        assert_eq!(found, Some(wiring.host_ifname));
        assert_eq!(lab.host_end("lo"), None);
    });
}

#[test]
fn what_is_not_a_veth_is_not_removed() {
    in_lab(|mut lab| {
        let error = pod::unwire(&mut lab.host, &"lo".parse().unwrap()).unwrap_err();
        assert!(matches!(error, Error::NotAVeth { .. }), "{error:?}");
    });
}

#[test]
fn the_nodes_own_namespace_is_refused_and_untouched() {
    in_lab(|mut lab| {
        let before = state(&mut lab.host);
        let node = NetNs::current().unwrap();
        let mut inside = Socket::open().unwrap();
        let error = pod::wire(&mut lab.host, &mut inside, &node, &wiring(), &eth0()).unwrap_err();
        assert!(matches!(error, Error::NotAPod), "{error:?}");
        assert_eq!(state(&mut lab.host), before);
    });
}
