//! Conntrack entries of released addresses, removed beside everything else.
//!
//! A removal costs as much as the table is large, so it must not hold up repairs, new ENIs or an ADD. Addresses that
//! come together go together. Invariant: an address that a pod has again is left alone, for its entries are the new
//! pod's.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use veni_core::chain::chain;
use veni_datapath::conntrack;

/// Tells the thread. It ends with the last of these.
#[derive(Debug, Clone)]
pub(super) struct Flusher {
    orders: Sender<Order>,
    pending: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Order {
    Flush(Ipv4Addr),
    Keep(Ipv4Addr),
}

impl Flusher {
    /// Starts the thread, in the network namespace of the caller. `idle` is called when all is done.
    pub(super) fn start(idle: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let (orders, received) = channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let left = pending.clone();
        let done = move |flushes| {
            if left.fetch_sub(flushes, Ordering::AcqRel) == flushes {
                idle();
            }
        };
        std::thread::Builder::new()
            .name("conntrack".to_owned())
            .spawn(move || run(&received, conntrack::flush_all, done))?;
        Ok(Self { orders, pending })
    }

    /// Flushes that are not carried out yet.
    pub(super) fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// The address has been released.
    pub(super) fn flush(&self, address: Ipv4Addr) {
        self.pending.fetch_add(1, Ordering::AcqRel);
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
    done: impl Fn(usize),
) {
    while let Ok(first) = orders.recv() {
        let mut batch = BTreeSet::new();
        let mut flushes = 0;
        for order in std::iter::once(first).chain(orders.try_iter()) {
            match order {
                Order::Flush(address) => {
                    flushes += 1;
                    batch.insert(address)
                }
                Order::Keep(address) => batch.remove(&address),
            };
        }
        if let Err(error) = flush(&batch) {
            tracing::warn!(error = chain(&error), ?batch, "conntrack entries not flushed");
        }
        if flushes > 0 {
            done(flushes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        sync::mpsc::channel,
    };

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
        let (batches, done) = (RefCell::new(Vec::new()), Cell::new(0));
        let flush = |batch: &BTreeSet<_>| {
            assert_eq!(done.get(), 0, "it is not done before it is");
            batches.borrow_mut().push(batch.clone());
            Ok(())
        };
        run(&received, flush, |flushes| done.set(done.get() + flushes));
        assert_eq!(batches.into_inner(), [BTreeSet::from([address(2), address(3)])]);
        assert_eq!(done.get(), 4);
    }
}
