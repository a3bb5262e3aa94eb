//! Asking the cloud: together, within the gates, and apart where one id spoils the answer for the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::time::{Instant, timeout};
use veni_core::id::{PrefixListId, SecurityGroupId};
use veni_provider::{
    Cloud, CloudError, CloudResult, ErrorClass, GroupMember, SecurityGroupRule,
    security_group::FILTER_VALUES,
};

use crate::{
    cache::{Memory, Shelf},
    gate::{Gates, Held},
    jitter::Jitter,
    part::{Entries, Failure, Members, Part},
    settings::Settings,
    whole::Wholes,
};

/// How often one question is split to find the id that spoils it: two among 200 take 14.
const SPLITS: u32 = 20;

/// Asks the cloud and notes what it said.
#[derive(Debug)]
pub(crate) struct Loader<C> {
    cloud: Arc<C>,
    gates: Gates,
    pub(crate) jitter: Jitter,
    pub(crate) memory: Memory,
    settings: Settings,
}

/// What came of asking for some ids.
#[derive(Debug)]
struct Asked<I, T> {
    /// Those that were asked for together, and the answer.
    answered: Vec<(Vec<I>, Vec<T>)>,
    /// Those that the cloud will not hear of.
    refused: Vec<(I, CloudError)>,
    /// Those that were not answered for, and when to ask again.
    held: Vec<(Vec<I>, Held)>,
}

type Map<I, T> = BTreeMap<I, Part<T>>;

impl<C: Cloud> Loader<C> {
    pub(crate) fn new(cloud: Arc<C>, settings: Settings) -> Self {
        Self {
            cloud,
            gates: Gates::default(),
            jitter: Jitter::new(settings.seed, settings.jitter_percent),
            memory: Memory::new(&settings),
            settings,
        }
    }

    /// Rules of those groups in `parts` that are due.
    pub(crate) async fn rules(
        &mut self,
        parts: &mut Map<SecurityGroupId, Vec<SecurityGroupRule>>,
        everything: bool,
    ) {
        let due = due(parts, everything);
        let call = |cloud: Arc<C>, ids: Vec<SecurityGroupId>| async move {
            cloud.describe_security_group_rules(&ids).await
        };
        let asked = self.ask("DescribeSecurityGroupRules", due, call).await;
        note_failures(parts, &asked.refused, &asked.held);
        let mut empty = Vec::new();
        for (ids, rules) in asked.answered {
            let mut by_group: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for rule in rules {
                by_group.entry(rule.group.clone()).or_default().push(rule);
            }
            for id in ids {
                match by_group.remove(&id) {
                    Some(rules) => keep(&self.memory.rules, parts, &id, rules).await,
                    None => empty.push(id),
                }
            }
        }
        self.existence(parts, empty).await;
    }

    /// Which of the groups without rules exist.
    async fn existence(
        &mut self,
        parts: &mut Map<SecurityGroupId, Vec<SecurityGroupRule>>,
        empty: Vec<SecurityGroupId>,
    ) {
        let call = |cloud: Arc<C>, ids: Vec<SecurityGroupId>| async move {
            cloud.describe_security_groups(&ids).await
        };
        let asked = self.ask("DescribeSecurityGroups", in_batches(empty), call).await;
        note_failures(parts, &asked.refused, &asked.held);
        for (ids, groups) in asked.answered {
            let existing: BTreeSet<_> = groups.into_iter().map(|group| group.id).collect();
            for id in ids {
                if existing.contains(&id) {
                    keep(&self.memory.rules, parts, &id, Vec::new()).await;
                } else {
                    let words = format!("{id} does not exist in this account and region");
                    self.miss(&self.memory.rules, parts, &id, words).await;
                }
            }
        }
    }

    /// Members of those groups in `parts` that are due.
    pub(crate) async fn members(
        &mut self,
        parts: &mut Map<SecurityGroupId, Members>,
        wholes: &Wholes,
        everything: bool,
    ) {
        let due = due(parts, everything);
        let call = |cloud: Arc<C>, ids: Vec<SecurityGroupId>| async move {
            cloud.describe_group_members(&ids).await
        };
        let asked = self.ask("DescribeNetworkInterfaces", due, call).await;
        note_failures(parts, &asked.refused, &asked.held);
        for (ids, enis) in asked.answered {
            let mut by_group = members_by_group(&enis);
            for id in ids {
                let answer = by_group.remove(&id).unwrap_or_default();
                // The first answer of a daemon may be as short as any: what was in force counts, too.
                let known = parts.get(&id).and_then(Part::value).map(Arc::as_ref);
                let members = match known.or_else(|| wholes.members(&id)) {
                    Some(known) => known.corrected_by(answer),
                    None => answer,
                };
                let doubtful = members.is_doubtful();
                keep(&self.memory.members, parts, &id, members).await;
                if let Some(part) = parts.get_mut(&id).filter(|_| doubtful) {
                    part.doubt(Instant::now() + self.settings.confirm());
                }
            }
        }
    }

    /// Entries of those prefix lists in `parts` that are due and have changed.
    pub(crate) async fn lists(&mut self, parts: &mut Map<PrefixListId, Entries>, everything: bool) {
        let due = due(parts, everything);
        let call =
            async |cloud: Arc<C>, ids: Vec<PrefixListId>| cloud.describe_prefix_lists(&ids).await;
        let asked = self.ask("DescribeManagedPrefixLists", due, call).await;
        note_failures(parts, &asked.refused, &asked.held);
        for (ids, lists) in asked.answered {
            let versions: BTreeMap<_, _> = lists.into_iter().map(|l| (l.id, l.version)).collect();
            for id in ids {
                match versions.get(&id) {
                    Some(version) => self.entries(parts, &id, *version).await,
                    None => {
                        let words =
                            format!("{id} does not exist, or is not shared with this account");
                        self.miss(&self.memory.lists, parts, &id, words).await;
                    }
                }
            }
        }
    }

    async fn entries(
        &mut self,
        parts: &mut Map<PrefixListId, Entries>,
        id: &PrefixListId,
        version: Option<u64>,
    ) {
        let known = parts.get(id).and_then(Part::value);
        if let Some(same) = known.filter(|known| version.is_some() && known.version == version) {
            let (same, now) = (Arc::clone(same), Instant::now());
            keep_shared(&self.memory.lists, parts, id, same, now).await;
            return;
        }
        let call = |cloud: Arc<C>, ids: Vec<PrefixListId>| async move {
            match ids.first() {
                Some(id) => cloud.prefix_list_entries(id, version).await,
                None => Ok(Vec::new()),
            }
        };
        let asked = self.ask("GetManagedPrefixListEntries", vec![vec![id.clone()]], call).await;
        note_failures(parts, &asked.refused, &asked.held);
        for (_, mut cidrs) in asked.answered {
            cidrs.sort_unstable();
            cidrs.dedup();
            keep(&self.memory.lists, parts, id, Entries { version, cidrs }).await;
        }
    }

    async fn miss<I, T>(&self, shelf: &Shelf<I, T>, parts: &mut Map<I, T>, id: &I, words: String)
    where
        I: std::hash::Hash + Ord + Clone + Send + Sync + 'static,
        T: Send + Sync + 'static,
    {
        let Some(part) = parts.get_mut(id) else { return };
        if part.missing(Instant::now(), words, self.settings.confirm()) {
            shelf.forget(id).await;
        }
    }

    /// Asks for each batch of ids, together where that goes.
    async fn ask<I: Clone, T, F>(
        &mut self,
        action: &'static str,
        mut batches: Vec<Vec<I>>,
        call: impl Fn(Arc<C>, Vec<I>) -> F,
    ) -> Asked<I, T>
    where
        F: Future<Output = CloudResult<Vec<T>>>,
    {
        let mut asked = Asked { answered: Vec::new(), refused: Vec::new(), held: Vec::new() };
        let mut splits = 0;
        while let Some(mut ids) = batches.pop() {
            if let Err(held) = self.gates.check(action, Instant::now()) {
                asked.held.push((ids, held));
                continue;
            }
            match self.within_time(action, call(Arc::clone(&self.cloud), ids.clone())).await {
                Ok(answer) => {
                    self.gates.open(action);
                    asked.answered.push((ids, answer));
                }
                Err(error) if !is_about_an_id(&error) => {
                    let Self { gates, settings, jitter, .. } = self;
                    let error = CloudError { action, ..error };
                    let held = gates.close(error, Instant::now(), settings, jitter);
                    asked.held.push((ids, held));
                }
                Err(_) if ids.len() > 1 && splits < SPLITS => {
                    splits += 1;
                    let rest = ids.split_off(ids.len() / 2);
                    batches.extend([rest, ids]);
                }
                Err(error) => asked.refused.extend(ids.into_iter().map(|id| (id, error.clone()))),
            }
        }
        asked
    }

    async fn within_time<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = CloudResult<T>>,
    ) -> CloudResult<T> {
        let limit = self.settings.call();
        timeout(limit, call).await.unwrap_or_else(|_| {
            let words = format!("no answer within {} s", limit.as_secs());
            Err(CloudError::new(action, ErrorClass::Transient, "Timeout", words))
        })
    }
}

/// Whether the cloud refuses for the sake of an id, so that others may still be asked for.
fn is_about_an_id(error: &CloudError) -> bool {
    matches!(error.class, ErrorClass::Invalid | ErrorClass::NotFound)
}

/// What of `parts` is to be asked for now, in batches.
fn due<I: Ord + Clone, T>(parts: &Map<I, T>, everything: bool) -> Vec<Vec<I>> {
    let now = Instant::now();
    let due = parts.iter().filter(|(_, part)| part.is_due(now, everything));
    let (alone, together): (Vec<_>, Vec<_>) = due.partition(|(_, part)| part.alone);
    let mut batches = in_batches(together.into_iter().map(|(id, _)| id.clone()).collect());
    batches.extend(alone.into_iter().map(|(id, _)| vec![id.clone()]));
    batches
}

fn in_batches<I: Clone>(ids: Vec<I>) -> Vec<Vec<I>> {
    ids.chunks(FILTER_VALUES).map(<[I]>::to_vec).collect()
}

fn note_failures<I: Ord, T>(
    parts: &mut Map<I, T>,
    refused: &[(I, CloudError)],
    held: &[(Vec<I>, Held)],
) {
    for (id, error) in refused {
        if let Some(part) = parts.get_mut(id) {
            part.alone = true;
            part.failed(Failure { words: words(error), retry: None, passing: false });
        }
    }
    for (ids, held) in held {
        let passing = !matches!(held.error.class, ErrorClass::Denied { .. });
        let failure = Failure { words: words(&held.error), retry: Some(held.until), passing };
        for id in ids {
            if let Some(part) = parts.get_mut(id) {
                part.failed(failure.clone());
            }
        }
    }
}

/// An error in words that are the same each time: without what EC2 says of the one request.
fn words(error: &CloudError) -> String {
    let CloudError { action, class, code, message } = error;
    let own =
        ["Encoded authorization failure", "(Service:", "Request ID", "RequestID", "RequestId"];
    let ends = own.iter().filter_map(|words| message.find(words));
    let end = ends.min().unwrap_or(message.len());
    let message = message[..end].trim_end_matches([' ', '.', ',', ';', ':', '(']);
    format!("{action} failed: {class} ({code}: {message})")
}

async fn keep<I, T>(shelf: &Shelf<I, T>, parts: &mut Map<I, T>, id: &I, value: T)
where
    I: std::hash::Hash + Ord + Clone + Send + Sync + 'static,
    T: Send + Sync + PartialEq + 'static,
{
    // The same again keeps its place in memory.
    let value = match parts.get(id).and_then(Part::value) {
        Some(known) if **known == value => Arc::clone(known),
        _ => Arc::new(value),
    };
    keep_shared(shelf, parts, id, value, Instant::now()).await;
}

async fn keep_shared<I, T>(
    shelf: &Shelf<I, T>,
    parts: &mut Map<I, T>,
    id: &I,
    value: Arc<T>,
    now: Instant,
) where
    I: std::hash::Hash + Ord + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    shelf.put(id, Arc::clone(&value), now).await;
    if let Some(part) = parts.get_mut(id) {
        part.found(value, now);
    }
}

fn members_by_group(enis: &[GroupMember]) -> BTreeMap<SecurityGroupId, Members> {
    let mut by_group: BTreeMap<SecurityGroupId, Members> = BTreeMap::new();
    for eni in enis {
        for group in &eni.security_groups {
            let members = by_group.entry(group.clone()).or_default();
            members.addresses.extend(&eni.addresses);
            eni.prefixes.iter().for_each(|prefix| members.add_prefix(*prefix));
        }
    }
    by_group
}
