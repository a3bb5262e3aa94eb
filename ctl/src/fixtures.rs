//! Canned answers of ipamd.

use veni_core::wire::inspect::View;

/// A node in the middle of a burst.
pub(crate) const BUSY: &str = include_str!("testdata/busy.json");

pub(crate) fn busy() -> View {
    crate::client::read_view(BUSY).unwrap()
}

/// The same node at rest.
pub(crate) fn calm() -> View {
    let mut view = busy();
    view.plan = veni_core::wire::inspect::PlanView::default();
    view.problems.clear();
    view.enis.truncate(2);
    view.drops.clear();
    view.repairs.clear();
    view.pool.waiting = 0;
    view.pool.pending = 0;
    view
}
