//! What a leader publishes of security groups, for the resolver: from the cluster, where policy comes from there.

use std::sync::Arc;

use tokio::sync::watch;
use veni_core::config::Config;
use veni_security_groups::published::Published;

/// Begins to follow it; `None` where there is no cluster.
#[cfg(feature = "kube")]
pub(super) fn follow(
    config: &Config,
) -> Option<impl FnOnce() -> watch::Receiver<Arc<Published>> + Send + use<>> {
    use veni_watch::Access;
    let access = Access::from_env().filter(|_| config.policy.manifest_dir.is_none())?;
    Some(move || begin(access))
}

#[cfg(feature = "kube")]
fn begin(access: veni_watch::Access) -> watch::Receiver<Arc<Published>> {
    use veni_security_groups::published::Board;
    use veni_watch::{GroupNews, follow_published};
    let (sender, published) = watch::channel(Arc::default());
    let mut board = Board::default();
    tokio::spawn(follow_published(access, move |news| {
        let changed = match news {
            GroupNews::Listed(objects) => {
                let names = objects.iter().map(|(name, _)| name.clone()).collect();
                for (name, spec) in objects {
                    board.apply(&name, spec);
                }
                board.listed(&names);
                true
            }
            GroupNews::Changed(name, spec) => board.apply(&name, spec),
            GroupNews::Gone(name) => board.remove(&name),
        };
        if changed {
            sender.send_replace(board.published());
        }
        !sender.is_closed()
    }));
    published
}

/// There is no cluster that could be read.
#[cfg(not(feature = "kube"))]
pub(super) fn follow(_: &Config) -> Option<fn() -> watch::Receiver<Arc<Published>>> {
    None
}
