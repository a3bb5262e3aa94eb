//! What a leader publishes of security groups, for the resolver: from the cluster, where policy comes from there.

use std::sync::Arc;

use tokio::sync::watch;
use veni_core::config::Config;
use veni_security_groups::published::Published;

/// It; `None` where there is no cluster.
#[cfg(feature = "kube")]
pub(super) fn follow(config: &Config) -> Option<watch::Receiver<Arc<Published>>> {
    use veni_security_groups::published::Board;
    use veni_watch::{Access, GroupNews, follow_published};
    let access = Access::from_env().filter(|_| config.policy.manifest_dir.is_none())?;
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
    Some(published)
}

/// There is no cluster that could be read.
#[cfg(not(feature = "kube"))]
pub(super) fn follow(_: &Config) -> Option<watch::Receiver<Arc<Published>>> {
    None
}
