//! The `NETLINK_NETFILTER` socket.

use std::{collections::BTreeSet, io, net::Ipv4Addr};

use super::message::{CTA_ID, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, DELETE, Flush, GET, header, names};
use crate::{
    raw::{self, NESTED},
    socket::RawSocket,
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A netfilter netlink socket in the namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netfilter {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netfilter {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: RawSocket::open(libc::NETLINK_NETFILTER)?,
            sequence: 0,
            buffer: vec![0; 32 * 1024],
        })
    }

    /// Deletes what matches, in the kernel. `EINVAL` where the kernel cannot delete by a filter.
    pub(super) fn delete(&mut self, flush: &Flush) -> io::Result<()> {
        match self.request(DELETE, NLM_F_ACK, &flush.body(), |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Lists what matches, and deletes each.
    pub(super) fn delete_one_by_one(&mut self, flush: &Flush) -> io::Result<()> {
        let mut found = Vec::new();
        self.request(GET, NLM_F_DUMP, &flush.body(), |body| found.extend(one(body)))?;
        self.delete_each(found)
    }

    /// Lists everything once, and deletes what names one of the addresses.
    pub(super) fn delete_naming(&mut self, addresses: &BTreeSet<Ipv4Addr>) -> io::Result<()> {
        let mut found = Vec::new();
        self.request(GET, NLM_F_DUMP, &header(), |body| {
            if names(body, addresses) {
                found.extend(one(body));
            }
        })?;
        self.delete_each(found)
    }

    fn delete_each(&mut self, found: Vec<Vec<u8>>) -> io::Result<()> {
        for entry in found {
            match self.request(DELETE, NLM_F_ACK, &entry, |_| {}) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&raw::encode(kind, flags | NLM_F_REQUEST, self.sequence, body))?;
        loop {
            let datagram = self.socket.receive(&mut self.buffer, 0)?;
            for message in
                raw::messages(datagram).filter(|message| message.sequence == self.sequence)
            {
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let errno = raw::u32_at(message.body, 0).unwrap_or(0).cast_signed();
                        return if errno < 0 {
                            Err(io::Error::from_raw_os_error(-errno))
                        } else {
                            Ok(())
                        };
                    }
                    _ => each(message.body),
                }
            }
        }
    }
}

/// The request that deletes exactly the listed entry: its tuple, and its id so that a successor with the same tuple
/// is spared.
fn one(body: &[u8]) -> Option<Vec<u8>> {
    let attributes = body.get(4..)?;
    let mut request = header();
    for kind in [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY] {
        if let Some(tuple) = raw::attribute(attributes, kind) {
            raw::push(&mut request, kind | NESTED, tuple);
        }
    }
    raw::push(&mut request, CTA_ID, raw::attribute(attributes, CTA_ID)?);
    Some(request)
}
