//! nf_tables notifications. A transaction's objects come first, its `NEWGEN` with the writer's pid last
//! (`nf_tables_commit_notify`).

use std::io;

use super::{Change, RECEIVE_BUFFER};
use crate::{nft, raw, socket::RawSocket};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_NEWGEN`.
const NEWGEN: u16 = 15;
/// `NFTA_GEN_PROC_PID`.
const PROC_PID: u16 = 2;
/// Table, chain, rule, set and element messages all have their table's name as attribute 1.
const TABLE_NAME: u16 = 1;
/// `AF_INET`, the family of tables `ip`.
const IPV4: u8 = 2;

pub(super) struct Reader {
    table: String,
    touched: bool,
}

pub(super) fn open() -> io::Result<RawSocket> {
    let socket = RawSocket::open(libc::NETLINK_NETFILTER)?;
    socket.receive_buffer(RECEIVE_BUFFER);
    socket.join(&[GROUP])?;
    Ok(socket)
}

impl Reader {
    pub(super) fn new(table: String) -> Self {
        Self { table, touched: false }
    }

    pub(super) fn read(&mut self, datagram: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        for message in raw::messages(datagram).filter(|message| message.kind >> 8 == SUBSYSTEM) {
            let Some(attributes) = message.body.get(4..) else {
                continue;
            };
            if message.kind & 0xff == NEWGEN {
                let pid =
                    raw::attribute(attributes, PROC_PID).and_then(|value| value.try_into().ok());
                let own = pid.is_some_and(|pid| nft::is_own(u32::from_be_bytes(pid)));
                if std::mem::take(&mut self.touched) && !own {
                    changes.push(Change::Nft);
                }
            } else if message.body[0] == IPV4 {
                let name = raw::attribute(attributes, TABLE_NAME).map(raw::text);
                self.touched |= name == Some(self.table.as_str());
            }
        }
        changes
    }
}
