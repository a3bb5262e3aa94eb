use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE};
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

use super::*;
use crate::netns::NetNs;

fn isolated(test: impl FnOnce(Socket) + Send + 'static) {
    let run = || match NetNs::unshare() {
        Ok(_) => test(Socket::open().unwrap()),
        Err(error) => match error.missing_feature() {
            Some(missing) => println!("SKIPPED: {missing}"),
            None => panic!("{error:?}"),
        },
    };
    std::thread::spawn(run).join().unwrap();
}

/// `127.0.<number>/32` on `lo`.
fn address(number: u16) -> Request {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.index = 1;
    let [high, low] = number.to_be_bytes();
    let local = IpAddr::V4(Ipv4Addr::new(127, 0, high, low));
    address.attributes = vec![AddressAttribute::Local(local)];
    Request::create(RouteNetlinkMessage::NewAddress(address))
}

fn addresses(socket: &mut Socket) -> usize {
    let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    socket.dump(all, Some).unwrap().len()
}

#[test]
fn the_first_refused_message_is_named_and_the_rest_is_still_done() {
    isolated(|mut socket| {
        let batch = [address(1), address(1), address(1), address(2)];
        let error = socket.transact(&batch).unwrap_err();
        assert_eq!((error.index(), error.errno()), (Some(1), Some(libc::EEXIST)));
        assert_eq!(addresses(&mut socket), 2);
        socket.transact(&[address(3)]).unwrap();
    });
}

#[test]
fn a_batch_above_one_send_counts_on() {
    isolated(|mut socket| {
        let one = NetlinkSerializable::buffer_len(&address(0).message);
        let count = SEND_BYTES / one + 3;
        let mut batch: Vec<_> = (0..count).map(|i| address(u16::try_from(i).unwrap())).collect();
        batch.push(address(0));
        let error = socket.transact(&batch).unwrap_err();
        assert_eq!(error.index(), Some(count), "{error:?}");
        assert_eq!(addresses(&mut socket), count);
    });
}

#[test]
fn the_kernels_words_reach_the_caller() {
    isolated(|mut socket| {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        let gateway = RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 1));
        route.attributes = vec![RouteAttribute::Gateway(gateway)];
        let route = RouteNetlinkMessage::NewRoute(route);
        let error = socket.transact(&[Request::create(route)]).unwrap_err();
        let Error::Rejected(rejected) = error else { panic!("{error:?}") };
        assert!(!rejected.ext_ack.is_empty(), "{rejected:?}");
    });
}

/// A kernel that marks the first `interruptions` dumps as inconsistent; each holds one address and the end.
fn dump_from_a_kernel_that_interrupts(interruptions: u32) -> Result<usize> {
    use std::os::unix::net::UnixDatagram;
    let (ours, kernels) = UnixDatagram::pair().unwrap();
    std::thread::spawn(move || {
        let mut request = [0; 256];
        for round in 0.. {
            if kernels.recv(&mut request).unwrap_or(0) == 0 {
                return;
            }
            let sequence = u32::from_ne_bytes(request[8..12].try_into().unwrap());
            let flags = if round < interruptions { NLM_F_DUMP_INTR } else { 0 };
            let message = address(1).message;
            let mut reply = Vec::new();
            let length = NetlinkSerializable::buffer_len(&message);
            frame::encode(&mut reply, 20, 0, sequence, length, |body| message.serialize(body));
            frame::encode(&mut reply, NLMSG_DONE, flags, sequence, 4, |_| {});
            kernels.send(&reply).unwrap();
        }
    });
    let (out, input) = (Vec::new(), Vec::new());
    let raw = std::os::fd::OwnedFd::from(ours).into();
    let mut socket = Socket { raw, sequence: 0, strict: true, out, input };
    let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    socket.dump(all, Some).map(|found| found.len())
}

#[test]
fn an_interrupted_dump_is_made_again_and_not_for_ever() {
    assert_eq!(dump_from_a_kernel_that_interrupts(0).unwrap(), 1);
    assert_eq!(dump_from_a_kernel_that_interrupts(DUMP_ATTEMPTS - 1).unwrap(), 1);
    let error = dump_from_a_kernel_that_interrupts(DUMP_ATTEMPTS).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error:?}");
}

#[test]
fn links_are_found_by_name_and_by_index() {
    isolated(|mut socket| {
        let lo = socket.get_link_by_name("lo").unwrap().unwrap();
        let same = socket.get_link_by_index(lo.header.index).unwrap().unwrap();
        assert_eq!(lo.header, same.header);
        assert!(socket.get_link_by_name("none").unwrap().is_none());
        assert!(socket.get_link_by_index(99_999).unwrap().is_none());
        assert!(socket.is_free(99_999) && !socket.is_free(lo.header.index));
    });
}
