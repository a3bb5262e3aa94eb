//! Conntrack entries of released addresses, removed beside everything else.
//!
//! A removal costs as much as the table is large, so it must not hold up repairs, new ENIs or an ADD. Addresses that
//! come together go together. Invariant: an address that a pod has again is left alone, for its entries are the new
//! pod's.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::mpsc::{Receiver, Sender, channel},
};

use veni_core::chain::chain;
use veni_datapath::conntrack;

/// Tells the thread. It ends with the last of these.
#[derive(Debug, Clone)]
pub(super) struct Flusher {
    orders: Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Flush(Ipv4Addr),
    Keep(Ipv4Addr),
}

impl Flusher {
    /// Starts the thread, in the network namespace of the caller.
    pub(super) fn start() -> std::io::Result<Self> {
        let (orders, received) = channel();
        std::thread::Builder::new()
            .name("conntrack".to_owned())
            .spawn(move || run(&received, conntrack::flush_all))?;
        Ok(Self { orders })
    }

    /// The address has been released.
    pub(super) fn flush(&self, address: Ipv4Addr) {
        self.tell(Order::Flush(address));
    }

    /// A pod has it again.
    pub(super) fn keep(&self, address: Ipv4Addr) {
        self.tell(Order::Keep(address));
    }

    fn tell(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::error!("the conntrack thread has ended: restart ipamd");
        }
    }
}

fn run(
    orders: &Receiver<Order>,
    flush: impl Fn(&BTreeSet<Ipv4Addr>) -> Result<(), veni_datapath::Error>,
) {
    while let Ok(first) = orders.recv() {
        let mut batch = BTreeSet::new();
        for order in std::iter::once(first).chain(orders.try_iter()) {
            match order {
                Order::Flush(address) => batch.insert(address),
                Order::Keep(address) => batch.remove(&address),
            };
        }
        if let Err(error) = flush(&batch) {
            tracing::warn!(error = chain(&error), ?batch, "conntrack entries not flushed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, sync::mpsc::channel};

    use super::*;

    #[test]
    fn what_comes_together_goes_together_but_for_what_is_used_again() {
        let (orders, received) = channel();
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        for order in [
            Order::Flush(address(1)),
            Order::Flush(address(2)),
            Order::Keep(address(1)),
            Order::Flush(address(3)),
            Order::Flush(address(2)),
        ] {
            orders.send(order).unwrap();
        }
        drop(orders);
        let batches = RefCell::new(Vec::new());
        run(&received, |batch| {
            batches.borrow_mut().push(batch.clone());
            Ok(())
        });
        assert_eq!(batches.into_inner(), [BTreeSet::from([address(2), address(3)])]);
    }
}
