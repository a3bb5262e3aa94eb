//! What the containerd tests drive: a private containerd, its CRI, and an image made by hand.
//!
//! - [`cri`]: the few CRI v1 calls that a pod needs, over containerd's unix socket.
//! - [`containerd`]: Debian's containerd and runc as a private daemon inside a node's network namespace.
//! - [`image`]: a one-layer OCI image around a static busybox, so that no registry is needed.
//!
//! Deliberately absent: a kubelet. The tests say what a kubelet would say.

pub mod containerd;
pub mod cri;
pub mod image;
