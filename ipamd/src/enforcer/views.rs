//! Questions to the enforcer, and its answers: the documents that `venictl policy --live` prints.

use std::net::IpAddr;

use veni_core::wire::inspect::policy::{Diagnostic, Explanation, Flows};
use veni_policy::{
    change::PodKey,
    object::{Pod, Protocol},
    service::FrontEnd,
    view::{self, Judge, Judgement, Party, PodFilter, Question, Translated, Unanswerable, View},
};

use super::{Enforcer, Plane};

/// A question.
#[derive(Debug)]
pub enum Query {
    /// About one connection.
    Check(Question),
    /// About all pods, or those chosen.
    Matrix {
        /// Sources.
        from: Option<PodFilter>,
        /// Destinations.
        to: Option<PodFilter>,
    },
    /// What applies to a pod.
    Explain(PodKey),
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// To [`Query::Check`] and [`Query::Matrix`].
    Flows(Flows),
    /// To [`Query::Explain`].
    Explanation(Box<Explanation>),
}

impl<P: Plane> Enforcer<P> {
    /// Answers from the index that the tables follow.
    ///
    /// # Errors
    /// When what is asked about does not exist.
    pub fn query(&self, query: &Query) -> Result<Answer, Unanswerable> {
        let view = View::new(self.pods.values(), self);
        match query {
            Query::Check(question) => view.check(question).map(Answer::Flows),
            Query::Matrix { from, to } => {
                let mut flows = view.matrix(from.as_ref(), to.as_ref())?;
                flows.diagnostics.extend(self.wrong());
                Ok(Answer::Flows(flows))
            }
            Query::Explain(pod) => {
                view.pod(&pod.namespace, &pod.name)?;
                let found = self.index.explain(pod).map(|found| view::explanation(&found));
                let mut explanation = found.unwrap_or_else(|| Explanation {
                    pod: pod.to_string(),
                    ..Explanation::default()
                });
                if self.closed.contains_key(pod) {
                    let note = "its labels did not come in time when it was wired: it is closed to all but its own node until they do";
                    explanation.notes.push(note.to_owned());
                }
                explanation.notes.extend(self.refused.iter().cloned());
                Ok(Answer::Explanation(Box::new(explanation)))
            }
        }
    }

    /// Everything that is wrong with objects.
    fn wrong(&self) -> Vec<Diagnostic> {
        let services = self.services.diagnostics().into_iter().map(|found| Diagnostic {
            object: found.key.to_string(),
            field: found.field,
            message: found.message,
            ..Diagnostic::default()
        });
        self.diagnostics.iter().cloned().chain(services).collect()
    }
}

impl<P: Plane> Judge for Enforcer<P> {
    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement {
        Judge::judge(&self.index, from, to, protocol, port)
    }

    fn translate(&self, _: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<Translated> {
        let protocol = Protocol::from_number(protocol)?;
        let translation = self.services.translate(FrontEnd { address: to, port, protocol })?;
        let owner = &translation.port.owner;
        Some(Translated {
            service: format!("{}/{}", owner.namespace, owner.name),
            back_ends: translation.back_ends.iter().map(|end| (end.address, end.port)).collect(),
        })
    }
}
