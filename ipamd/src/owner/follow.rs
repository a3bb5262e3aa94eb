//! The pool's settings as they change while the daemon runs: see [`crate::following`].

use std::sync::Arc;

use veni_core::config::Config;
use veni_provider::Cloud;

use super::Owner;
use crate::{
    following::{self, Following, Heard},
    host::Host,
    journal::Store,
    pool::PROVISIONING,
    start,
};

/// What is in force, and what tells of it.
#[derive(Debug)]
pub(super) struct Settings {
    /// Tells of the cluster's objects.
    pub(super) source: Option<following::Source>,
    /// In force: the daemon's own, under those of the object that this node follows.
    pub(super) config: Arc<Config>,
    /// That object.
    pub(super) following: Option<Following>,
    /// Objects that cannot be used, by name.
    pub(super) refused: Vec<(String, String)>,
}

impl Settings {
    pub(super) const fn new(own: Arc<Config>) -> Self {
        Self { source: None, config: own, following: None, refused: Vec::new() }
    }
}

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// Who tells of settings. What was in force last is, until it speaks.
    #[must_use]
    pub fn configured_by(mut self, source: following::Source) -> Self {
        let former = self.parts.whereabouts.following.clone();
        self.settings.source = Some(source);
        self.follow(former);
        self
    }

    /// The cluster's objects have changed. What nobody has read yet changes nothing.
    pub(super) fn hear(&mut self, heard: Option<Heard>) {
        let Some(heard) = heard else { return };
        let refused = heard.problems(self.settings.following.as_ref());
        for (_, problem) in refused.iter().filter(|wrong| !self.settings.refused.contains(wrong)) {
            tracing::warn!(problem, "settings");
        }
        self.settings.refused = refused;
        let chosen = heard.choose(self.settings.following.as_ref());
        if chosen == self.settings.following {
            self.tell_following();
            return;
        }
        match &chosen {
            Some(Following { name, generation, overrides, .. }) => {
                tracing::info!(
                    name,
                    generation,
                    ?overrides,
                    "settings of a NodeNetworkConfig are in force"
                );
            }
            None => {
                tracing::info!("no NodeNetworkConfig selects this node: its variables are in force")
            }
        }
        self.follow(chosen);
        self.tell_following();
        self.keep_whereabouts();
        self.plan_now();
    }

    /// Pods keep what they have: the planner grows and shrinks by what is free.
    fn follow(&mut self, following: Option<Following>) {
        let config = following::settings(&self.parts.config, following.as_ref());
        let pool = &mut self.parts.pool;
        let settings = &mut pool.settings;
        settings.targets = config.targets;
        settings.cooldown = config.cooldown;
        settings.max_pods = config.max_pods;
        settings.provisioning = !config.disable_provisioning;
        pool.following.clone_from(&following);
        pool.settings.provisioned_by = pool.setting(PROVISIONING).to_string();
        pool.limits = start::pool_limits(&self.parts.whereabouts.limits, &config);
        self.parts.metrics.following(following.as_ref());
        self.parts.whereabouts.following.clone_from(&following);
        self.settings.config = Arc::new(config);
        self.settings.following = following;
    }
}
