//! What the test asks of a cluster: objects as JSON, and a program run in a pod.

use std::{fmt, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::AttachParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::crypto::{CryptoProvider, ring};
use serde_json::Value;
use tokio::{io::AsyncReadExt as _, time::timeout};

use super::{
    Test,
    objects::NAMESPACE,
    probe::{Answer, Question},
};

/// How long the API server is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// The program in the pods' image.
pub(super) const PROGRAM: &str = "/usr/bin/venictl";

/// A cluster, as far as the test has to do with it.
pub(super) trait Cluster {
    /// The object or the list at a path; `None`: there is none.
    async fn get(&self, path: &str) -> anyhow::Result<Option<Value>>;
    /// Makes an object in a collection; `false`: there is one of its name.
    async fn create(&self, collection: &str, object: &Value) -> anyhow::Result<bool>;
    /// Merges a patch into an object.
    async fn patch(&self, path: &str, patch: &Value) -> anyhow::Result<()>;
    /// Deletes an object, if it is there.
    async fn delete(&self, path: &str) -> anyhow::Result<()>;
    /// Asks questions in a pod of the test, all at once.
    async fn ask(&self, pod: &str, questions: &[Question]) -> anyhow::Result<Vec<Answer>>;
}

/// The user's rights do not reach so far: what the API server says of it.
#[derive(Debug)]
pub(super) struct Forbidden(pub(super) String);

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Forbidden {}

/// One that is reached by a kubeconfig.
pub(super) struct Live {
    client: Client,
}

// === impl Live ===

impl Live {
    pub(super) async fn connect(test: &Test) -> anyhow::Result<Self> {
        if CryptoProvider::get_default().is_none() {
            drop(ring::default_provider().install_default());
        }
        let config = config(test.kubeconfig.as_deref(), test.context.clone()).await?;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).with_context(|| format!("setting up {server}"))?;
        let this = Self { client };
        this.get("/version").await.with_context(|| format!("asking the API server {server}"))?;
        Ok(this)
    }

    async fn request(&self, method: &str, path: &str, body: Vec<u8>) -> anyhow::Result<Value> {
        let kind =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request =
            Request::builder().method(method).uri(path).header("content-type", kind).body(body)?;
        let answer = timeout(PATIENCE, self.client.request::<Value>(request)).await;
        let answer = answer.map_err(|_| anyhow::anyhow!("no answer within {PATIENCE:?}"));
        Ok(answer.with_context(|| format!("{method} {path}"))??)
    }

    async fn execute(&self, pod: &str, command: Vec<String>) -> anyhow::Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let params = AttachParams::default().stdin(false).stdout(true).stderr(true);
        let mut process = pods.exec(pod, command, &params).await?;
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let status = process.take_status();
        let (mut out, mut err) = (String::new(), String::new());
        let (read_out, read_err) = tokio::join!(
            async {
                match stdout {
                    Some(mut stream) => stream.read_to_string(&mut out).await,
                    None => Ok(0),
                }
            },
            async {
                match stderr {
                    Some(mut stream) => stream.read_to_string(&mut err).await,
                    None => Ok(0),
                }
            }
        );
        read_out.and(read_err)?;
        let ended = match status {
            Some(status) => status.await.and_then(|status| status.message),
            None => None,
        };
        ensure!(!out.is_empty(), "{} {}", ended.unwrap_or_default(), err.trim());
        Ok(out)
    }
}

impl Cluster for Live {
    async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        match self.request("GET", path, Vec::new()).await {
            Err(error) if code(&error) == Some(404) => Ok(None),
            answer => answer.map(Some).map_err(plain),
        }
    }

    async fn create(&self, collection: &str, object: &Value) -> anyhow::Result<bool> {
        match self.request("POST", collection, object.to_string().into_bytes()).await {
            Err(error) if code(&error) == Some(409) => Ok(false),
            answer => answer.map(|_| true).map_err(plain),
        }
    }

    async fn patch(&self, path: &str, patch: &Value) -> anyhow::Result<()> {
        self.request("PATCH", path, patch.to_string().into_bytes()).await.map(drop).map_err(plain)
    }

    async fn delete(&self, path: &str) -> anyhow::Result<()> {
        match self.request("DELETE", path, Vec::new()).await {
            Err(error) if code(&error) == Some(404) => Ok(()),
            answer => answer.map(drop).map_err(plain),
        }
    }

    async fn ask(&self, pod: &str, questions: &[Question]) -> anyhow::Result<Vec<Answer>> {
        let questions_as_json = serde_json::to_string(questions)?;
        let command = [PROGRAM, "connectivity", "probe", &questions_as_json];
        let longest = questions.iter().map(|question| question.millis).max().unwrap_or_default();
        // A measurement ends later than it was told to, by what is on its way.
        let most = PATIENCE + 2 * Duration::from_millis(longest);
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let text = match timeout(most, self.execute(pod, command)).await {
            Ok(text) => text.with_context(|| format!("running {PROGRAM} in the pod {pod}"))?,
            Err(_) => bail!("the pod {pod} did not end its probes within {most:?}"),
        };
        let answers: Vec<Answer> = serde_json::from_str(&text)
            .with_context(|| format!("the pod {pod} printed {}", text.trim()))?;
        ensure!(answers.len() == questions.len(), "{pod} answered {} questions", answers.len());
        Ok(answers)
    }
}

async fn config(file: Option<&Path>, context: Option<String>) -> anyhow::Result<Config> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    match file {
        Some(file) => {
            let read = Kubeconfig::read_from(file)
                .with_context(|| format!("reading the kubeconfig {}", file.display()))?;
            Ok(Config::from_custom_kubeconfig(read, &options).await?)
        }
        None if options.context.is_some() => Ok(Config::from_kubeconfig(&options).await?),
        None => Config::infer()
            .await
            .context("finding a cluster: name a kubeconfig with --kubeconfig, or set KUBECONFIG"),
    }
}

fn code(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>()? {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The API server's own sentence, without what kube wraps around it.
fn plain(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) if status.code == 403 => {
            Forbidden(status.message.clone()).into()
        }
        Some(kube::Error::Api(status)) => anyhow::anyhow!("{}", status.message),
        _ => error,
    }
}
