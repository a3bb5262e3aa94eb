//! Events (`events.k8s.io/v1`), as the scheduler writes them.
//!
//! What happens again is one event that counts (its series), written at most every [`AGAIN`]; a pod, and the node as a
//! whole, have so many new ones at a time and no more. Bounds are for the API server: 5,000 nodes whose pods are all denied
//! something write some hundred events a second, not one a packet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{About, Desk, Happening, escaped, now};
use crate::api::{Failure, Verb};

const PATH: &str = "/apis/events.k8s.io/v1/namespaces";
const CONTROLLER: &str = "veni.dev/ipamd";
/// How long the same is the same event, after its last time.
const SAME: Duration = Duration::from_secs(360);
/// How often its count is written at most.
const AGAIN: Duration = Duration::from_secs(60);
/// New events about one pod, or the node itself, at once, and how long until there may be one more.
const OF_ONE: (u32, Duration) = (5, Duration::from_secs(60));
/// The same about all together, and, apart from them, for counts that are written again.
const OF_ALL: (u32, Duration) = (20, Duration::from_secs(5));
/// Events that are known at once.
const KNOWN: usize = 1024;
/// The API server's bounds (`ValidateEventCreate`).
const LONGEST_NOTE: usize = 1024;
const LONGEST_INSTANCE: usize = 128;

/// What makes two the same event.
type Key = (About, &'static str, String);

#[derive(Debug)]
struct Known {
    namespace: String,
    name: String,
    /// How often in all, and how many of them the API server knows of.
    count: u32,
    written: u32,
    last: Instant,
    told: Instant,
}

/// So many at once, and one more after each `refill`.
#[derive(Debug)]
struct Bucket {
    left: u32,
    at: Instant,
}

pub(super) struct Recorder {
    known: HashMap<Key, Known>,
    of_one: BTreeMap<About, Bucket>,
    of_all: Bucket,
    again: Bucket,
    /// What makes names unique: the start's time, and a number.
    epoch: u64,
    number: u64,
}

/// What is to be written of a happening.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A new event.
    New(Key),
    /// The count of one.
    Again(Key),
    /// Nothing now.
    Later,
    /// Nothing: there were too many.
    Limited,
}

/// Writes until nobody tells.
pub(super) async fn write(desk: Desk, mut news: mpsc::Receiver<Happening>) {
    let mut recorder = Recorder::new(Instant::now());
    let mut tick = tokio::time::interval(AGAIN / 2);
    loop {
        tokio::select! {
            told = news.recv() => match told {
                None => return,
                Some(happening) => recorder.record(&desk, &happening).await,
            },
            _ = tick.tick() => recorder.count_up(&desk).await,
        }
    }
}

// === impl Recorder ===

impl Recorder {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            known: HashMap::new(),
            of_one: BTreeMap::new(),
            of_all: Bucket { left: OF_ALL.0, at: now },
            again: Bucket { left: OF_ALL.0, at: now },
            epoch: u64::try_from(super::now().as_microsecond()).unwrap_or_default(),
            number: 0,
        }
    }

    async fn record(&mut self, desk: &Desk, happening: &Happening) {
        match self.admit(happening, Instant::now()) {
            Entry::New(key) => self.create(desk, key, happening).await,
            Entry::Again(key) => self.repeat(desk, &key).await,
            Entry::Later => {}
            Entry::Limited => {
                desk.counters.limited.fetch_add(1, Relaxed);
            }
        }
    }

    /// What is to be written of it. Pure.
    pub(super) fn admit(&mut self, happening: &Happening, now: Instant) -> Entry {
        self.known.retain(|_, known| now.duration_since(known.last) < SAME);
        let key = (happening.about.clone(), happening.reason, without_numbers(&happening.note));
        if let Some(known) = self.known.get_mut(&key) {
            known.count += 1;
            known.last = now;
            let due = now.duration_since(known.told) >= AGAIN;
            return if due && self.again.take(OF_ALL, now) {
                Entry::Again(key)
            } else {
                Entry::Later
            };
        }
        let (most, refill) = OF_ONE;
        self.of_one.retain(|_, bucket| bucket.refilled(OF_ONE, now) < most);
        let crowded = self.known.len() >= KNOWN || self.of_one.len() >= KNOWN;
        let fresh = || Bucket { left: most, at: now };
        if crowded || self.of_all.refilled(OF_ALL, now) == 0 {
            return Entry::Limited;
        }
        let bucket = self.of_one.entry(happening.about.clone()).or_insert_with(fresh);
        if !bucket.take((most, refill), now) || !self.of_all.take(OF_ALL, now) {
            return Entry::Limited;
        }
        self.number += 1;
        let (namespace, of) = match &happening.about {
            About::Pod { namespace, name, .. } => (namespace.clone(), name.clone()),
            About::Node => ("default".to_owned(), "node".to_owned()),
        };
        // As client-go names them: the object, and what no other event has.
        let of: String = of.chars().take(200).collect();
        let name = format!("{of}.{:x}{:04x}", self.epoch, self.number);
        let known = Known { namespace, name, count: 1, written: 0, last: now, told: now };
        self.known.insert(key.clone(), known);
        Entry::New(key)
    }

    async fn create(&mut self, desk: &Desk, key: Key, happening: &Happening) {
        let Some(known) = self.known.get_mut(&key) else { return };
        let event = event(known, happening, &desk.node);
        let path = format!("{PATH}/{}/events", escaped(&known.namespace));
        let done = desk
            .count("create events.events.k8s.io", desk.api.send(Verb::Post, &path, &event).await);
        match done {
            Ok(_) => known.written = 1,
            // Told anew when it happens again: what the API server does not have cannot be counted up.
            Err(_) => drop(self.known.remove(&key)),
        }
    }

    /// Writes the counts that have grown since they were written last.
    async fn count_up(&mut self, desk: &Desk) {
        for key in self.due(Instant::now()) {
            self.repeat(desk, &key).await;
        }
    }

    /// Those whose count is to be written now, as many as may be, first those that were written longest ago. Pure.
    fn due(&mut self, now: Instant) -> Vec<Key> {
        let due =
            |known: &Known| known.count > known.written && now.duration_since(known.told) >= AGAIN;
        let due = self.known.iter().filter(|(_, known)| due(known));
        let mut due: Vec<_> = due.map(|(key, known)| (known.told, key.clone())).collect();
        due.sort();
        let again = &mut self.again;
        due.into_iter().map_while(|(_, key)| again.take(OF_ALL, now).then_some(key)).collect()
    }

    async fn repeat(&mut self, desk: &Desk, key: &Key) {
        let Some(known) = self.known.get_mut(key) else { return };
        known.told = Instant::now();
        let series =
            json!({"series": {"count": known.count, "lastObservedTime": format!("{:.6}", now())}});
        let path = format!("{PATH}/{}/events/{}", escaped(&known.namespace), escaped(&known.name));
        let done = desk.api.send(Verb::MergePatch, &path, &series).await;
        match desk.count("patch events.events.k8s.io", done) {
            Ok(_) => known.written = known.count,
            // It has expired there.
            Err(Failure::Refused { status: 404, .. }) => drop(self.known.remove(key)),
            Err(_) => {}
        }
    }
}

fn event(known: &Known, happening: &Happening, node: &str) -> Value {
    let regarding = match &happening.about {
        About::Pod { namespace, name, uid } => {
            let mut pod =
                json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name});
            if let Some(uid) = uid {
                pod["uid"] = uid.as_str().into();
            }
            pod
        }
        // As the kubelet's: `kubectl describe node` looks for its name as the UID.
        About::Node => json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}),
    };
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"namespace": known.namespace, "name": known.name},
        "eventTime": format!("{:.6}", now()),
        "reportingController": CONTROLLER,
        "reportingInstance": cut(node, LONGEST_INSTANCE),
        "type": if happening.warning { "Warning" } else { "Normal" },
        "reason": happening.reason,
        "action": happening.action,
        "regarding": regarding,
        "note": cut(&happening.note, LONGEST_NOTE),
    })
}

/// At most so many bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// Waits and counts in a note make no other event of it.
fn without_numbers(note: &str) -> String {
    note.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

// === impl Bucket ===

impl Bucket {
    fn refilled(&mut self, (most, refill): (u32, Duration), now: Instant) -> u32 {
        while self.left < most && now.duration_since(self.at) >= refill {
            self.at += refill;
            self.left += 1;
        }
        if self.left == most {
            self.at = now;
        }
        self.left
    }

    fn take(&mut self, bound: (u32, Duration), now: Instant) -> bool {
        let some = self.refilled(bound, now) > 0;
        self.left -= u32::from(some);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::{super::text, *};

    fn about(name: &str) -> About {
        About::Pod { namespace: "x".to_owned(), name: name.to_owned(), uid: None }
    }

    fn happening(name: &str, note: &str) -> Happening {
        let (reason, action) = ("NoPodAddress", "AssignAddress");
        Happening { about: about(name), warning: true, reason, action, note: note.to_owned() }
    }

    #[test]
    fn what_happens_again_counts_and_is_written_seldom() {
        let start = Instant::now();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let mut recorder = Recorder::new(start);
        let key = (about("a"), "NoPodAddress", "subnet full,  s left".to_owned());
        assert_eq!(
            recorder.admit(&happening("a", "subnet full, 20 s left"), at(0)),
            Entry::New(key.clone())
        );
        for secs in 1..60 {
            assert_eq!(
                recorder.admit(&happening("a", "subnet full, 7 s left"), at(secs)),
                Entry::Later
            );
        }
        assert_eq!(
            recorder.admit(&happening("a", "subnet full, 1 s left"), at(60)),
            Entry::Again(key.clone())
        );
        assert_eq!(recorder.known[&key].count, 61);
        assert_eq!(
            recorder.admit(&happening("a", "subnet full, 1 s left"), at(60 + 360)),
            Entry::New(key)
        );
    }

    #[test]
    fn one_pod_and_all_together_have_so_many_and_no_more() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start);
        let words = ["a", "b", "c", "d", "e", "f", "g"];
        let admitted = |recorder: &mut Recorder, pod: &str, at: Instant| {
            let new =
                |word: &&&str| matches!(recorder.admit(&happening(pod, word), at), Entry::New(_));
            words.iter().filter(new).count()
        };
        assert_eq!(admitted(&mut recorder, "noisy", start), 5);
        let others: usize =
            (0..10).map(|pod| admitted(&mut recorder, &format!("p{pod}"), start)).sum();
        assert_eq!(others, 15, "20 in all");
        let later = start + Duration::from_secs(3600);
        assert_eq!(admitted(&mut recorder, "noisy", later), 5);
    }

    #[test]
    fn counts_are_written_again_at_the_pace_of_new_ones() {
        let start = Instant::now();
        let mut recorder = Recorder::new(start);
        let mut now = start;
        for pod in 0..300 {
            now += OF_ALL.1;
            for _ in 0..2 {
                recorder.admit(&happening(&format!("p{pod}"), "denied"), now);
            }
            recorder.known.values_mut().for_each(|known| known.last = now);
        }
        assert_eq!(recorder.known.len(), 300);
        let first = recorder.due(now);
        assert_eq!(first.len(), 20, "of nearly 300 that have grown");
        for key in &first {
            recorder.known.get_mut(key).unwrap().told = now;
        }
        assert!(recorder.due(now).is_empty());
        let again = recorder.admit(&happening("p100", "denied"), now);
        assert_eq!(again, Entry::Later, "nor when it happens again");
        let next = recorder.due(now + OF_ALL.1);
        assert!(next.len() == 1 && !first.contains(&next[0]), "each has its turn: {next:?}");
    }

    #[test]
    fn an_event_is_within_the_api_servers_bounds() {
        let mut recorder = Recorder::new(Instant::now());
        let long = happening("a", &"ü".repeat(900));
        let Entry::New(key) = recorder.admit(&long, Instant::now()) else { panic!("it is new") };
        let event = event(&recorder.known[&key], &long, &"n".repeat(200));
        assert!(text(&event, "/note").len() <= 1024 && text(&event, "/note").len() > 1000);
        assert_eq!(text(&event, "/reportingInstance").len(), 128);
        let time = text(&event, "/eventTime");
        let fraction = time.split('.').nth(1).unwrap();
        assert_eq!(
            (fraction.len(), fraction.ends_with('Z')),
            (7, true),
            "{time}: Go's RFC3339Micro"
        );
    }
}
