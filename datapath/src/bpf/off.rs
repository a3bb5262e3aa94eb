//! Ending policy on a node whose maps an earlier daemon has filled: nothing follows the cluster any more, and what is
//! not followed must not decide.

use veni_ebpf_common::{Remove, Write};

use super::{
    Filter,
    pods::{Pod, PodPolicy},
};
use crate::{error::Result, grace};

/// Where the kernel cannot tell: longer than any program runs.
const GRACE: std::time::Duration = std::time::Duration::from_millis(20);

impl Filter {
    /// Whether any pod is isolated: judged by sets of its own.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn isolates(&self) -> Result<bool> {
        Ok(self.entries()?.values().any(|pod| pod.policy != open(pod)))
    }

    /// From now on no pod is isolated and no Service is translated: entries first, then what judged them goes. How many
    /// pods were judged until now, and how many entries went.
    ///
    /// # Errors
    /// When the kernel refuses. What is left is left whole, for another attempt.
    pub fn judge_nobody(&self) -> Result<(usize, usize)> {
        let mut judged = 0;
        for (ifindex, pod) in self.entries()? {
            let open = open(&pod);
            if pod.policy != open {
                judged += usize::from(self.pod_policy(ifindex, open)?);
            }
        }
        let left: Vec<Remove> = self.tables().entries()?.iter().filter_map(remove).collect();
        if judged == 0 && left.is_empty() {
            return Ok((0, 0));
        }
        self.raise_epoch()?;
        grace();
        let (back_ends, rest): (Vec<Remove>, Vec<Remove>) =
            left.into_iter().partition(|entry| matches!(entry, Remove::Backend(_)));
        let removed = self.tables().remove(&rest)? + self.tables().remove(&back_ends)?;
        Ok((judged, removed))
    }
}

fn open(pod: &Pod) -> PodPolicy {
    PodPolicy { address_v6: pod.policy.address_v6, ..PodPolicy::default() }
}

/// Waits until no program that started before is running any more.
pub(super) fn grace() {
    if grace::wait().is_err() {
        std::thread::sleep(GRACE);
    }
}

/// Profiles are an array's: nothing leads to them any more.
fn remove(entry: &Write) -> Option<Remove> {
    Some(match *entry {
        Write::ClassV4 { address, .. } => Remove::ClassV4(address),
        Write::ClassV6 { address, .. } => Remove::ClassV6(address),
        Write::CidrV4 { prefix, length, .. } => Remove::CidrV4(prefix, length),
        Write::CidrV6 { prefix, length, .. } => Remove::CidrV6(prefix, length),
        Write::Verdict { key, .. } => Remove::Verdict(key),
        Write::Port { key, length, .. } => Remove::Port(key, length),
        Write::ServiceV4 { key, .. } => Remove::ServiceV4(key),
        Write::ServiceV6 { key, .. } => Remove::ServiceV6(key),
        Write::Backend { key, .. } => Remove::Backend(key),
        Write::Profile { .. } => return None,
    })
}
