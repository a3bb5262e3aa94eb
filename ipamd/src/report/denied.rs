//! Events for pods whose traffic is denied: one a pod, peer and rule in a while, whatever the number of flows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use veni_core::wire::{
    PodRef,
    inspect::policy::{Direction, FlowEvent, Verdict},
};

use super::{Happening, Tell};

/// How long the same is not told again.
const SAME: Duration = Duration::from_secs(60);
/// How many are remembered; more than these are not told.
const MOST: usize = 1024;
/// Flows that may wait; the programs bound their number already.
pub const WAITING: usize = 256;

/// A flow that was denied.
#[derive(Debug, Clone)]
pub struct Denial {
    /// The UID of its pod.
    pub uid: Option<String>,
    /// It.
    pub flow: FlowEvent,
}

/// What makes two denials the same.
type Key = (String, bool, String, String);

/// Tells of flows until nobody has any.
pub async fn tell(mut denials: mpsc::Receiver<Denial>, teller: Arc<dyn Tell>) {
    let mut told = HashMap::new();
    while let Some(denial) = denials.recv().await {
        if let Some(happening) = news(&mut told, &denial, Instant::now()) {
            teller.happened(happening);
        }
    }
}

/// The event of this denial; `None`: it was told lately.
fn news(told: &mut HashMap<Key, Instant>, denial: &Denial, now: Instant) -> Option<Happening> {
    let Denial { uid, flow } = denial;
    let (namespace, name) = flow.pod.split_once('/')?;
    if flow.verdict != Verdict::Denied {
        return None;
    }
    let egress = flow.direction == Direction::Egress;
    let remote = if egress { flow.destination } else { flow.source };
    let peer = match &flow.peer {
        Some(pod) => format!("pod {pod} ({})", remote.ip()),
        None => remote.ip().to_string(),
    };
    let by = flow.decided_by.as_ref().map(ToString::to_string).unwrap_or_default();
    let key = (flow.pod.clone(), egress, peer.clone(), by.clone());
    if told.get(&key).is_some_and(|at| now.duration_since(*at) < SAME) {
        return None;
    }
    if told.len() >= MOST {
        told.retain(|_, at| now.duration_since(*at) < SAME);
        if told.len() >= MOST {
            return None;
        }
    }
    told.insert(key, now);
    let (protocol, port) = (&flow.protocol, flow.destination.port());
    let by = if by.is_empty() { by } else { format!(" by {by}") };
    let note = if egress {
        format!("{protocol} to {peer}, port {port}, is denied{by}")
    } else {
        format!("{protocol} from {peer} to port {port} is denied{by}")
    };
    Some(Happening {
        pod: Some(PodRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.clone(),
        }),
        warning: true,
        reason: "TrafficDenied",
        action: "EnforcePolicy",
        note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(peer: &str, verdict: Verdict) -> Denial {
        let flow = FlowEvent {
            time_millis: 0,
            verdict,
            pod: "x/a".to_owned(),
            direction: Direction::Ingress,
            peer: Some(peer.to_owned()),
            source: "10.0.0.7:40000".parse().unwrap(),
            destination: "10.0.0.8:80".parse().unwrap(),
            protocol: "TCP".to_owned(),
            decided_by: None,
            reason: None,
            lost: 0,
        };
        Denial { uid: Some("u1".to_owned()), flow }
    }

    #[test]
    fn a_denial_is_told_once_in_a_while_for_each_peer() {
        let (mut told, start) = (HashMap::new(), Instant::now());
        let mut at = |secs: u64, denial: &Denial| {
            news(&mut told, denial, start + Duration::from_secs(secs)).map(|event| event.note)
        };
        let expected = "TCP from pod x/b (10.0.0.7) to port 80 is denied";
        assert_eq!(at(0, &denial("x/b", Verdict::Denied)).as_deref(), Some(expected));
        assert_eq!(at(59, &denial("x/b", Verdict::Denied)), None);
        assert!(at(59, &denial("x/c", Verdict::Denied)).is_some());
        assert!(at(60, &denial("x/b", Verdict::Denied)).is_some());
        assert_eq!(at(200, &denial("x/b", Verdict::Allowed)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut told, start) = (HashMap::new(), Instant::now());
        let mut count = |at: Instant| {
            let told = (0..3000)
                .filter_map(|n| news(&mut told, &denial(&format!("x/p{n}"), Verdict::Denied), at));
            told.count()
        };
        assert_eq!(count(start), MOST);
        assert_eq!(count(start + SAME), MOST, "it goes on when those are of long ago");
    }
}
