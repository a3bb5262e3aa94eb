//! Asking beside the watches: for one pod by its name, because an ADD may come before the watch has told of its pod, and for
//! what decides about a new pod, because its watch may not have told of that.

use std::{sync::Arc, time::Instant};

use serde_json::Value;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout_at},
};

use crate::{
    Settings,
    api::{Api, Failure},
    backoff::Backoff,
    follow::Told,
    hold::Part,
    resource::Resource,
    trim::Trim,
};

/// Questions that are under way at once: a burst of ADDs is no burst of requests.
pub(crate) const AT_ONCE: usize = 8;
/// Objects of a page.
const PAGE: u32 = 500;

/// Asks for pods.
#[derive(Debug, Clone)]
pub struct Asking {
    questions: mpsc::UnboundedSender<Question>,
}

#[derive(Debug)]
pub(crate) struct Question {
    namespace: String,
    name: String,
    uid: Option<String>,
    until: Instant,
}

impl Asking {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Question>) {
        let (questions, asked) = mpsc::unbounded_channel();
        (Self { questions }, asked)
    }

    /// Asks the API server for this pod, again and again until it has it, with this UID where one is known, or the time is
    /// over. What it answers comes as a batch, unless the watch was faster.
    pub fn pod(&self, namespace: &str, name: &str, uid: Option<&str>, until: Instant) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let question = Question { namespace, name, uid: uid.map(str::to_owned), until };
        // Without a watch there is no answer either.
        drop(self.questions.send(question));
    }
}

/// Answers questions until nobody asks or listens.
pub(crate) async fn answer(
    api: Api,
    settings: Settings,
    mut questions: mpsc::UnboundedReceiver<Question>,
    told: mpsc::Sender<Told>,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(question) = questions.recv().await {
        let (api, told, places) = (api.clone(), told.clone(), places.clone());
        tokio::spawn(async move {
            let Ok(_place) = places.acquire().await else { return };
            let until = question.until;
            let asked = timeout_at(until.into(), ask(&api, &settings, &question)).await;
            if let Ok(Some(pod)) = asked {
                // Nobody listens: nobody waits.
                drop(told.send(Told::Answer(Resource::Pods, pod)).await);
            }
        });
    }
}

async fn ask(api: &Api, settings: &Settings, question: &Question) -> Option<Value> {
    let Question { namespace, name, uid, .. } = question;
    // They come from the runtime, and become part of a path.
    let is_name = |text: &str| {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        text.bytes().all(sound) && text.bytes().any(|byte| byte.is_ascii_alphanumeric())
    };
    if !is_name(namespace) || !is_name(name) {
        return None;
    }
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    loop {
        match api.get(&path).await {
            Ok(answer) => {
                let pod = Trim::object(Resource::Pods, &answer).ok()?;
                let found = pod.pointer("/metadata/uid").and_then(Value::as_str);
                let mirror = pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror");
                let is_it = |uid: &String| {
                    found == Some(uid) || mirror.and_then(Value::as_str) == Some(uid)
                };
                if uid.as_ref().is_none_or(is_it) {
                    return Some(pod);
                }
            }
            Err(failure) if failure.status() == Some(403) => {
                let (verb, resource) = ("get", "pods");
                tracing::warn!(
                    verb,
                    resource,
                    "a pod may not be asked for: its ADD waits for the watch; add it to the daemon's role"
                );
                return None;
            }
            Err(failure) => tracing::debug!(?failure, namespace, name, "asking for a pod"),
        }
        sleep(settings.ask_again).await;
    }
}

/// Asks for a part of a resource, and goes on until it is stopped: an answer may be too old for who asks, and a failure ends.
pub(crate) async fn part(
    api: Api,
    settings: Settings,
    part: Part,
    places: Arc<Semaphore>,
    told: mpsc::Sender<Told>,
) {
    let mut backoff = Backoff::new(settings.ask_again, settings.retry_most);
    loop {
        let Ok(place) = places.acquire().await else { return };
        let answer = list(&api, &part).await;
        drop(place);
        let mut wait = backoff.next();
        let answer = match answer {
            Ok((version, objects)) => Told::Part(part.clone(), version, objects),
            Err(failure) => {
                tracing::debug!(%part, ?failure, "asking for what decides about a pod");
                if let Failure::Refused { retry_after: Some(asked), .. } = &failure {
                    let asked = (*asked).min(settings.retry_most);
                    // The API server names one time to everybody.
                    wait = wait.max(asked + backoff.between(asked));
                }
                Told::NoPart(part.clone(), failure.to_string())
            }
        };
        if told.send(answer).await.is_err() {
            return;
        }
        tokio::select! {
            () = told.closed() => return,
            () = sleep(wait) => {}
        }
    }
}

/// All of it as it is now: without a resource version a list is never older than the question (Kubernetes API concepts, "The
/// resourceVersion parameter": "Most Recent").
async fn list(api: &Api, part: &Part) -> Result<(u64, Vec<Value>), Failure> {
    let (mut objects, mut token) = (Vec::new(), String::new());
    loop {
        let mut path = format!("{}limit={PAGE}", part.path());
        if !token.is_empty() {
            path = format!("{path}&continue={token}");
        }
        let answer = api.get(&path).await?;
        let garbled = |error: serde_json::Error| Failure::Garbled(error.to_string());
        let mut page = Trim::list(part.resource, &answer).map_err(garbled)?;
        let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) else {
            return Err(Failure::Garbled("a list without items".to_owned()));
        };
        objects.extend(items.into_iter().map(|item| part.resource.named(item)));
        let text =
            |pointer: &str| page.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        token = text("/metadata/continue").to_owned();
        if token.is_empty() {
            return Ok((text("/metadata/resourceVersion").parse().unwrap_or_default(), objects));
        }
    }
}
