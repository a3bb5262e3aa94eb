//! Conntrack entries of released addresses, removed beside everything else.
//!
//! A removal costs as much as the table is large, so it must not hold up repairs, new ENIs or an ADD. Addresses that
//! come together go together. Invariant: an address that a pod has again is left alone, for its entries are the new
//! pod's. What could not be removed is tried again, with what has come meanwhile.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use veni_core::chain::chain;
use veni_datapath::conntrack;

/// After a removal that failed it is tried again: first so soon, then after twice the time each.
const RETRY: Duration = Duration::from_millis(250);
/// The longest time between two attempts.
const LONGEST: Duration = Duration::from_secs(60);

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
            .spawn(move || run(&received, conntrack::flush_all, done, RETRY))?;
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

fn run<E: std::error::Error + 'static>(
    orders: &Receiver<Order>,
    flush: impl Fn(&BTreeSet<Ipv4Addr>) -> Result<(), E>,
    done: impl Fn(usize),
    retry: Duration,
) {
    let (mut batch, mut flushes) = (BTreeSet::new(), 0);
    let mut failed: Option<Failed> = None;
    loop {
        let first = match &failed {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(failed) => {
                orders.recv_timeout(failed.retry_at.saturating_duration_since(Instant::now()))
            }
        };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        for order in first.into_iter().chain(orders.try_iter()) {
            match order {
                Order::Flush(address) => {
                    flushes += 1;
                    batch.insert(address)
                }
                Order::Keep(address) => batch.remove(&address),
            };
        }
        if failed.as_ref().is_some_and(|failed| failed.retry_at > Instant::now()) {
            continue;
        }
        if let Err(error) = flush(&batch) {
            let wait = failed.map_or(retry, |failed| (failed.wait * 2).min(LONGEST));
            tracing::warn!(
                error = chain(&error),
                ?batch,
                retry_millis = wait.as_millis(),
                "conntrack entries not flushed"
            );
            failed = Some(Failed { wait, retry_at: Instant::now() + wait });
            continue;
        }
        failed = None;
        batch.clear();
        let flushed = std::mem::take(&mut flushes);
        if flushed > 0 {
            done(flushed);
        }
    }
}

/// The last attempt.
struct Failed {
    /// How long the next one is waited for.
    wait: Duration,
    retry_at: Instant,
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
            Ok::<_, std::io::Error>(())
        };
        run(&received, flush, |flushes| done.set(done.get() + flushes), RETRY);
        assert_eq!(batches.into_inner(), [BTreeSet::from([address(2), address(3)])]);
        assert_eq!(done.get(), 4);
    }

    #[test]
    fn what_could_not_be_flushed_is_tried_again_but_for_what_is_used_again() {
        let (orders, received) = channel();
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        orders.send(Order::Flush(address(1))).unwrap();
        orders.send(Order::Flush(address(2))).unwrap();
        let orders = RefCell::new(Some(orders));
        let (batches, done) = (RefCell::new(Vec::new()), Cell::new(0));
        let flush = |batch: &BTreeSet<_>| {
            batches.borrow_mut().push(batch.clone());
            let attempts = batches.borrow().len();
            let mut orders = orders.borrow_mut();
            let sender = orders.as_ref().unwrap();
            match attempts {
                1 => {
                    sender.send(Order::Keep(address(1))).unwrap();
                    sender.send(Order::Flush(address(3))).unwrap();
                }
                4 => {
                    // Nothing is left: the thread ends.
                    *orders = None;
                    return Ok(());
                }
                _ => {}
            }
            assert_eq!(done.get(), 0, "it is not done before it is");
            Err(std::io::Error::other("no memory"))
        };
        let began = Instant::now();
        let retry = Duration::from_millis(2);
        run(&received, flush, |flushes| done.set(done.get() + flushes), retry);
        let [first, rest @ ..] = &batches.into_inner()[..] else { panic!("nothing was tried") };
        assert_eq!(*first, BTreeSet::from([address(1), address(2)]));
        assert_eq!(rest, vec![BTreeSet::from([address(2), address(3)]); 3]);
        assert_eq!(done.get(), 3);
        assert!(began.elapsed() >= retry * (1 + 2 + 4), "each wait is twice the last");
    }
}
