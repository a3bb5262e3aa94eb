//! Policy over HTTP: verdicts, explanations, and flows as they happen.
//!
//! Paths, parameters and documents are those of [`veni_core::wire::inspect::policy`].

use std::{convert::Infallible, str::FromStr, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query as Parameters, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use veni_core::wire::inspect::policy::{
    Applied, Explanation, FlowEvent, GroupStanding, Standing, Verdict,
};
use veni_policy::{
    change::PodKey,
    view::{End, Question, protocol_number},
};

use crate::enforcer::{Answer, Handle, Input, Query, Reply, Subscriber, exposition};

/// How long a generation is waited for unless told otherwise, and at most.
const APPLIED: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);
/// Flows that may wait for a reader that is slow.
const BACKLOG: usize = 1024;

type Pairs = Parameters<Vec<(String, String)>>;

/// What cannot be answered, as it is sent.
type Refusal = (StatusCode, String);

/// The routes; without policy on this node they say so.
pub(super) fn router(enforcer: Option<Handle>) -> Router {
    Router::new()
        .route("/v1/policy", get(standing))
        .route("/v1/policy/applied", get(applied))
        .route("/v1/policy/metrics", get(own_metrics))
        .route("/v1/policy/check", get(check))
        .route("/v1/policy/matrix", get(matrix))
        .route("/v1/policy/explain", get(explain))
        .route("/v1/flows", get(flows))
        .with_state(enforcer)
}

async fn standing(State(enforcer): State<Option<Handle>>) -> Result<Json<Standing>, Refusal> {
    enabled(enforcer)?.standing().await.map(Json).ok_or_else(stopping)
}

/// Policy's part of the metrics, without an end mark; nothing where no policy is enforced.
pub(super) async fn metrics(enforcer: Option<&Handle>) -> String {
    let standing = match enforcer {
        Some(enforcer) => enforcer.standing().await,
        None => None,
    };
    standing.as_ref().map(exposition).unwrap_or_default()
}

/// As part of `/metrics`, by itself.
async fn own_metrics(State(enforcer): State<Option<Handle>>) -> String {
    metrics(enforcer.as_ref()).await + "# EOF\n"
}

/// Answered when what was taken in is in force.
async fn applied(
    State(enforcer): State<Option<Handle>>,
    pairs: Pairs,
) -> Result<Json<Applied>, Refusal> {
    let enforcer = enabled(enforcer)?;
    let generation: Option<u64> = parameter(&pairs, "generation")?;
    let patience = parameter(&pairs, "wait_millis")?.map_or(APPLIED, Duration::from_millis);
    let (reply, answer) = oneshot::channel();
    enforcer.tell(Input::Await(generation, reply));
    match timeout(patience.min(MOST), answer).await {
        Ok(Ok(applied)) => Ok(Json(applied)),
        Ok(Err(_)) => Err(stopping()),
        Err(_) => {
            let standing = enforcer.standing().await.ok_or_else(stopping)?;
            let Standing { generation, applied, pending, write_failure, .. } = standing;
            let why = write_failure.map(|failure| format!(": {failure}")).unwrap_or_default();
            let message = format!(
                "generation {generation} is known, {applied} in force, {pending} steps pending{why}\n"
            );
            Err((StatusCode::GATEWAY_TIMEOUT, message))
        }
    }
}

async fn check(State(enforcer): State<Option<Handle>>, pairs: Pairs) -> Result<Response, Refusal> {
    let question = Question {
        from: required::<End>(&pairs, "from")?,
        to: required::<End>(&pairs, "to")?,
        protocol: match parameter::<String>(&pairs, "protocol")? {
            None => 6,
            Some(name) => protocol_number(&name)
                .ok_or_else(|| bad(format!("protocol={name}: expected a name or a number")))?,
        },
        port: required(&pairs, "port")?,
    };
    ask(enforcer, |reply| Input::Query(Query::Check(question), reply)).await
}

async fn matrix(State(enforcer): State<Option<Handle>>, pairs: Pairs) -> Result<Response, Refusal> {
    let ends = [parameter(&pairs, "from")?, parameter(&pairs, "to")?];
    ask(enforcer, |reply| Input::Matrix(ends, reply)).await
}

async fn explain(
    State(enforcer): State<Option<Handle>>,
    pairs: Pairs,
) -> Result<Response, Refusal> {
    match required(&pairs, "pod")? {
        End::Pod { namespace, name } => {
            let query = Query::Explain(PodKey { namespace, name });
            ask(enforcer, |reply| Input::Query(query, reply)).await
        }
        End::Address(address) => Err(bad(format!("pod={address}: expected namespace/name"))),
    }
}

async fn ask(
    enforcer: Option<Handle>,
    question: impl FnOnce(Reply) -> Input,
) -> Result<Response, Refusal> {
    let (reply, answer) = oneshot::channel();
    let enforcer = enabled(enforcer)?;
    enforcer.tell(question(reply));
    match answer.await.map_err(|_| stopping())? {
        // A large matrix is megabytes, and the runtime's one thread serves ADDs.
        Ok(Answer::Flows(flows)) => {
            spawn_blocking(move || Json(flows).into_response()).await.map_err(|_| stopping())
        }
        Ok(Answer::Explanation(mut explanation)) => {
            note_groups(&mut explanation, &enforcer.groups());
            Ok(Json(explanation).into_response())
        }
        Err(unanswerable) => Err((StatusCode::NOT_FOUND, format!("{unanswerable}\n"))),
    }
}

/// How old the rules of the pod's groups are, where they are not fresh, and what of them admits nobody.
fn note_groups(explanation: &mut Explanation, groups: &[GroupStanding]) {
    let own =
        |group: &&GroupStanding| explanation.security_groups.iter().any(|own| own.id == group.id);
    let mut notes = Vec::new();
    for group in groups.iter().filter(own) {
        let GroupStanding { id, state, age_secs, last_error, .. } = group;
        if state == "stale" {
            let (age, error) = (age_secs.unwrap_or(0), last_error.as_deref().unwrap_or("unknown"));
            notes.push(format!(
                "Security group {id} is in force as it was {age} s ago: the last refresh failed: {error}."
            ));
        }
        notes.extend(group.notes.iter().map(|note| format!("Security group {id}: {note}")));
    }
    explanation.notes.extend(notes);
}

/// Which flows are wanted.
struct Filter {
    pod: Option<End>,
    namespace: Option<String>,
    verdicts: Vec<String>,
    ports: Vec<u16>,
}

impl Filter {
    fn parse(pairs: &Pairs) -> Result<Self, Refusal> {
        Ok(Self {
            pod: parameter(pairs, "pod")?,
            namespace: parameter(pairs, "namespace")?,
            verdicts: all(pairs, "verdict")?,
            ports: all(pairs, "port")?,
        })
    }

    fn wants(&self, flow: &FlowEvent) -> bool {
        let ends = [Some(flow.pod.as_str()), flow.peer.as_deref()];
        let of_pod = self.pod.as_ref().is_none_or(|pod| {
            let name = pod.to_string();
            ends.iter().flatten().any(|end| *end == name)
        });
        let of_namespace = self.namespace.as_ref().is_none_or(|namespace| {
            ends.iter().flatten().any(|end| end.split('/').next() == Some(namespace))
        });
        let verdict = Verdict::as_str(flow.verdict);
        of_pod
            && of_namespace
            && (self.verdicts.is_empty() || self.verdicts.iter().any(|wanted| wanted == verdict))
            && (self.ports.is_empty() || self.ports.contains(&flow.destination.port()))
    }
}

/// One JSON document a line, as they happen, without end.
async fn flows(State(enforcer): State<Option<Handle>>, pairs: Pairs) -> Result<Response, Refusal> {
    let filter = Filter::parse(&pairs)?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    enabled(enforcer)?.tell(Input::Subscribe(Subscriber::new(sender)));
    let lines = stream::unfold((receiver, filter), |(mut receiver, filter)| async move {
        loop {
            let flow = receiver.recv().await?;
            if filter.wants(&flow)
                && let Ok(mut line) = serde_json::to_string(&flow)
            {
                line.push('\n');
                return Some((Ok::<_, Infallible>(line), (receiver, filter)));
            }
        }
    });
    Ok(([("content-type", "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn enabled(enforcer: Option<Handle>) -> Result<Handle, Refusal> {
    let message =
        "no policy is enforced on this node: set VENI_MANIFEST_DIR, or attach it to a cluster\n";
    enforcer.ok_or_else(|| (StatusCode::SERVICE_UNAVAILABLE, message.to_owned()))
}

fn stopping() -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, "ipamd is stopping\n".to_owned())
}

fn bad(message: String) -> Refusal {
    (StatusCode::BAD_REQUEST, message + "\n")
}

fn all<T: FromStr<Err: std::fmt::Display>>(pairs: &Pairs, name: &str) -> Result<Vec<T>, Refusal> {
    let of_name = pairs.0.iter().filter(|(key, _)| key == name);
    let parsed = of_name.map(|(_, value)| {
        value.parse().map_err(|error: T::Err| bad(format!("{name}={value}: {error}")))
    });
    parsed.collect()
}

fn parameter<T: FromStr<Err: std::fmt::Display>>(
    pairs: &Pairs,
    name: &str,
) -> Result<Option<T>, Refusal> {
    Ok(all(pairs, name)?.pop())
}

fn required<T: FromStr<Err: std::fmt::Display>>(pairs: &Pairs, name: &str) -> Result<T, Refusal> {
    parameter(pairs, name)?.ok_or_else(|| bad(format!("{name} is missing")))
}

#[cfg(test)]
mod tests {
    use veni_core::wire::inspect::policy::GroupView;

    use super::*;

    #[test]
    fn an_explanation_says_how_old_the_rules_of_a_group_are() {
        let standing = |id: &str, state: &str| GroupStanding {
            id: id.to_owned(),
            state: state.to_owned(),
            age_secs: Some(600),
            last_error: Some("RequestLimitExceeded".to_owned()),
            notes: vec!["rule sgr-9 is stale".to_owned()],
            ..GroupStanding::default()
        };
        for (id, state, expected) in [
            ("sg-1", "fresh", vec!["Security group sg-1: rule sgr-9 is stale"]),
            ("sg-2", "stale", Vec::new()),
            (
                "sg-1",
                "stale",
                vec![
                    "Security group sg-1 is in force as it was 600 s ago: the last refresh failed: RequestLimitExceeded.",
                    "Security group sg-1: rule sgr-9 is stale",
                ],
            ),
        ] {
            let own = GroupView { id: "sg-1".to_owned(), unresolved: None };
            let mut explanation =
                Explanation { security_groups: vec![own], ..Explanation::default() };
            note_groups(&mut explanation, &[standing(id, state)]);
            assert_eq!(explanation.notes, expected, "{id} {state}");
        }
    }
}
