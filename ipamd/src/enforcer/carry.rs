//! Carrying out steps: in their order, runs of writes at once, and none before one that failed.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use veni_policy::change::{PodKey, PodSets, Remove, Step, Write};

use super::{Enforcer, OWN_LONGEST, Plane, RETRY};

impl<P: Plane> Enforcer<P> {
    /// Carries out pending steps. `false`: one failed and is tried again.
    pub(super) fn carry(&mut self, now: Instant) -> bool {
        while let Some(step) = self.pending.pop_front() {
            let done = match &step {
                Step::Write(_) => self.write_run(&step),
                Step::Delete(_) => self.remove_run(&step),
                Step::Endpoint { pod, sets } => self.endpoint(pod, *sets),
                Step::NodeAddresses(own) => {
                    // Others than before may fit at once.
                    self.own_failures = 0;
                    self.own(own.clone(), now);
                    Ok(())
                }
                Step::Epoch => {
                    self.progress.epochs += 1;
                    self.plane.raise_epoch()
                }
                Step::Grace => {
                    self.plane.grace();
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::error!(error, retry_secs = RETRY.as_secs(), "policy not written");
                self.progress.write_failures += 1;
                self.progress.write_failure = Some(error);
                self.pending.push_front(step);
                self.retry_at = Some(now + RETRY);
                return false;
            }
        }
        self.retry_at = None;
        self.progress.write_failure = None;
        true
    }

    /// Tells the programs which addresses are the node's own. What finds no room is tried again without holding up the
    /// rest: isolated pods may not reach it meanwhile.
    pub(super) fn own(&mut self, own: BTreeSet<IpAddr>, now: Instant) {
        let Err(error) = self.plane.own_addresses(&own) else {
            self.own_again = None;
            self.own_failures = 0;
            return;
        };
        // A map that is full stays so until addresses go, which is told by itself.
        let wait = RETRY.saturating_mul(1 << self.own_failures.min(9)).min(OWN_LONGEST);
        self.own_failures += 1;
        let retry_secs = wait.as_secs();
        tracing::error!(
            error,
            retry_secs,
            "the programs do not know all of the node's addresses: isolated pods may not reach the others"
        );
        self.progress.write_failures += 1;
        self.own_again = Some((now + wait, own));
    }

    /// This write and those that follow it at once, in few calls.
    fn write_run(&mut self, first: &Step) -> Result<(), String> {
        let Step::Write(first) = first else { return Ok(()) };
        let mut run: Vec<Write> = vec![first.clone()];
        while let Some(Step::Write(write)) = self.pending.front() {
            run.push(write.clone());
            self.pending.pop_front();
        }
        let done = self.plane.write(&run);
        if done.is_err() {
            // All of them again: a write is the same twice.
            run.drain(1..).rev().for_each(|write| self.pending.push_front(Step::Write(write)));
        }
        done
    }

    fn remove_run(&mut self, first: &Step) -> Result<(), String> {
        let Step::Delete(first) = first else { return Ok(()) };
        let mut run: Vec<Remove> = vec![first.clone()];
        while let Some(Step::Delete(remove)) = self.pending.front() {
            run.push(remove.clone());
            self.pending.pop_front();
        }
        let done = self.plane.remove(&run);
        if done.is_err() {
            run.drain(1..).rev().for_each(|remove| self.pending.push_front(Step::Delete(remove)));
        }
        done
    }

    fn endpoint(&mut self, pod: &PodKey, sets: PodSets) -> Result<(), String> {
        self.wirings.of(pod).try_for_each(|ifindex| self.plane.judge(ifindex, sets).map(drop))
    }
}

/// Where what nobody waits for begins: with the grace that follows all that pods are told. One before that lets programs end
/// that know of a pod what it was before it was closed.
pub(super) fn tidying(steps: &[Step]) -> usize {
    let tells = |step: &Step| matches!(step, Step::Endpoint { .. } | Step::Epoch);
    let told = steps.iter().rposition(tells).map_or(0, |last| last + 1);
    let grace = steps[told..].iter().position(|step| matches!(step, Step::Grace));
    grace.map_or(steps.len(), |at| told + at)
}
