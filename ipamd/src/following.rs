//! Which NodeNetworkConfig is in force on this node: the pool's settings as the cluster has them, without a restart.
//!
//! The object with the highest priority of those whose selector matches the Node's labels, of equals the first by name
//! ([`in_force`]), and it as a whole. Invariants: an object that cannot be read changes nothing, and is named with what is
//! wrong; its former version stays in force, over a restart too, as everything does that was in force while nobody says
//! otherwise. Deliberately absent: what a setting means (the planner's), and telling the API server (`report`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use veni_core::{config::Config, wire::inspect};
use veni_eniconfig_crd::{
    LabelSelector, Labels, NodeNetworkConfig, Overrides, node_network_config::in_force,
};

/// An object whose settings are in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its generation that is in force.
    pub generation: i64,
    /// Its priority.
    pub priority: i32,
    /// Its settings.
    pub overrides: Overrides,
}

/// What the cluster says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// The own Node's labels.
    pub labels: Labels,
    /// The NodeNetworkConfigs, by name.
    pub configs: BTreeMap<String, Known>,
}

/// A NodeNetworkConfig that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its UID.
    pub uid: String,
    /// Its present generation.
    pub generation: i64,
    /// The last version of it that could be understood.
    pub value: Option<NodeNetworkConfig>,
    /// What is wrong with the present one.
    pub problem: Option<String>,
}

/// Tells the owner; `None` before the Node and the objects were read.
pub type Source = watch::Receiver<Option<Heard>>;

// === impl Heard ===

impl Heard {
    /// The object that is in force from now on. `former` is the one that was, which an object of the same name that never
    /// could be read here has for its last version.
    #[must_use]
    pub fn choose(&self, former: Option<&Following>) -> Option<Following> {
        let understood = self.configs.iter().filter_map(|(name, known)| {
            let of_before = || former.filter(|former| former.is(name, known)).map(Following::again);
            known.value.clone().or_else(of_before)
        });
        let understood: Vec<_> = understood.collect();
        let chosen = in_force(&understood, &self.labels)?;
        Some(Following {
            name: chosen.name.clone(),
            uid: self.configs.get(&chosen.name)?.uid.clone(),
            generation: chosen.generation,
            priority: chosen.priority,
            overrides: chosen.overrides,
        })
    }

    /// What is wrong with objects, each with its name. `former` is the one that was in force.
    #[must_use]
    pub fn problems(&self, former: Option<&Following>) -> Vec<(String, String)> {
        let wrong = |(name, known): (&String, &Known)| {
            let what = known.problem.as_ref()?;
            let here = former.is_some_and(|former| former.is(name, known));
            let then = if here || known.value.is_some() {
                "its previous version stays in force where it was"
            } else {
                "it is in force nowhere"
            };
            let generation = known.generation;
            let message = format!(
                "NodeNetworkConfig {name}, generation {generation}, cannot be used ({what}): {then}"
            );
            Some((name.clone(), message))
        };
        self.configs.iter().filter_map(wrong).collect()
    }
}

// === impl Following ===

impl Following {
    fn is(&self, name: &str, known: &Known) -> bool {
        self.name == name && self.uid == known.uid
    }

    /// The field that takes the place of a variable, and whose it is; `None` where the object leaves it to the variable.
    #[must_use]
    pub fn setting(&self, variable: &str) -> Option<(&'static str, String)> {
        let field = match variable {
            "MAX_ENI" => "maxENI",
            "VENI_MAX_PODS" => "maxPods",
            "DISABLE_NETWORK_RESOURCE_PROVISIONING" => "disableProvisioning",
            _ => return None,
        };
        let its = self.overrides.variables().contains(&variable);
        its.then(|| (field, format!(" of NodeNetworkConfig {}", self.name)))
    }

    /// As it was read. It selected this node, and nobody knows better.
    fn again(&self) -> NodeNetworkConfig {
        NodeNetworkConfig {
            name: self.name.clone(),
            generation: self.generation,
            nodes: LabelSelector::default(),
            priority: self.priority,
            overrides: self.overrides,
            notes: Vec::new(),
        }
    }

    /// For people and programs.
    #[must_use]
    pub fn view(&self) -> inspect::Overrides {
        inspect::Overrides {
            object: format!("NodeNetworkConfig {}", self.name),
            generation: self.generation,
            variables: self.overrides.variables().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// The settings in force: the daemon's own, under those of the object.
#[must_use]
pub fn settings(own: &Config, following: Option<&Following>) -> Config {
    following.map_or_else(|| own.clone(), |following| following.overrides.over(own))
}

/// The next that is heard; never anything where there is no source (any more).
pub async fn next(source: &mut Option<Source>) -> Option<Heard> {
    if let Some(receiver) = source {
        if receiver.changed().await.is_ok() {
            return receiver.borrow_and_update().clone();
        }
        *source = None;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str, spec: &Value) -> Value {
        json!({"metadata": {"name": name, "generation": 3}, "spec": spec})
    }

    fn known(name: &str, spec: &Value) -> (String, Known) {
        let read = NodeNetworkConfig::parse(&object(name, spec));
        let problem = read.as_ref().err().map(|problems| problems[0].to_string());
        let uid = format!("uid-{name}");
        (name.to_owned(), Known { uid, generation: 3, value: read.ok(), problem })
    }

    fn heard(configs: &[(&str, Value)]) -> Heard {
        Heard {
            labels: [("pool".to_owned(), "large".to_owned())].into(),
            configs: configs.iter().map(|(name, spec)| known(name, spec)).collect(),
        }
    }

    fn spec(selector: &Value, priority: i32, warm_ip: u32) -> Value {
        json!({"nodeSelector": selector, "priority": priority, "pool": {"warmIPTarget": warm_ip}})
    }

    #[test]
    fn the_highest_priority_wins_and_of_equals_the_first_by_name() {
        let (all, mine) = (json!({}), json!({"matchLabels": {"pool": "large"}}));
        let others = json!({"matchLabels": {"pool": "small"}});
        let check = |configs: &[(&str, Value)], expect: Option<&str>| {
            let chosen = heard(configs).choose(None);
            assert_eq!(chosen.as_ref().map(|chosen| chosen.name.as_str()), expect, "{configs:?}");
        };
        check(&[], None);
        check(&[("a", spec(&others, 9, 1))], None);
        check(&[("a", spec(&all, 0, 1)), ("b", spec(&mine, 0, 2))], Some("a"));
        check(&[("a", spec(&all, 0, 1)), ("b", spec(&mine, 1, 2))], Some("b"));
        check(&[("a", spec(&all, 0, 1)), ("b", spec(&others, 7, 2))], Some("a"));
        check(
            &[("a", spec(&all, 0, 1)), ("b", json!({"priority": 9, "pool": {"maxENI": 0}}))],
            Some("a"),
        );
    }

    #[test]
    fn what_cannot_be_read_leaves_its_former_version_in_force_and_says_so() {
        let sound = heard(&[("a", spec(&json!({}), 5, 7))]);
        let former = sound.choose(None).unwrap();
        let broken = heard(&[
            ("a", json!({"nodeSelector": {}, "pool": {"maxENI": 0}})),
            ("b", spec(&json!({}), 4, 1)),
        ]);
        assert_eq!(broken.choose(Some(&former)), Some(former.clone()));
        assert_eq!(
            broken.choose(None).unwrap().name,
            "b",
            "never applied where it was never sound"
        );
        let problems = broken.problems(Some(&former));
        assert!(!problems[0].1.contains("nowhere"), "it is in force here: {problems:?}");
        let elsewhere = broken.problems(None);
        assert!(elsewhere[0].1.contains("it is in force nowhere"), "{elsewhere:?}");
        assert!(problems[0].1.contains("maxENI: must be 1 or more"), "{problems:?}");
        assert_eq!(problems.len(), 1);
        // Another object of that name is not it.
        let mut other = broken;
        other.configs.get_mut("a").unwrap().uid = "uid-other".to_owned();
        assert_eq!(other.choose(Some(&former)).unwrap().name, "b");
    }

    #[test]
    fn an_object_takes_the_place_of_what_it_sets_and_of_nothing_else() {
        let own = Config { max_eni: Some(3), ..Config::default() };
        let chosen = heard(&[("a", spec(&json!({}), 0, 7))]).choose(None);
        let settings = settings(&own, chosen.as_ref());
        assert_eq!((settings.targets.warm_ip, settings.max_eni), (7, Some(3)));
        assert_eq!(chosen.unwrap().view().variables, ["WARM_IP_TARGET"]);
    }
}
