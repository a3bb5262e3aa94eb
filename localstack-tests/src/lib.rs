//! What the tests against LocalStack share: the server as a child process, an account in it, instance metadata.
//!
//! Two tiers: [`Tier::Plain`], what users have in CI, and [`Tier::Semantics`], with the extension that gives it EC2's
//! addresses (`semantics/`). A test never skips: without LocalStack it fails and says to run `hack/localstack.sh`.
//!
//! Tests of one binary share one server ([`LocalStack::shared`]) and have a VPC each; faults and the log of calls are
//! told apart by the name in the user agent, which is each [`Account`]'s own.

mod account;
mod daemon;
mod groups;
mod imds;
mod localstack;
mod timer;

pub use account::{Account, Node};
pub use daemon::Daemon;
pub use imds::Metadata;
pub use localstack::LocalStack;
pub use timer::WallClock;
pub use veni_localstack::{
    control::{Call, Delays, Fault, When},
    program::Tier,
};
