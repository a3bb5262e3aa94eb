//! What goes over the socket. Unknown fields are ignored.

use serde::{Deserialize, Serialize};
use veni_core::id::InstanceId;
use veni_provider::{
    call::{Answer, Call, Failure},
    sim::{Admin, AdminAnswer},
};

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// A cloud call of an instance.
    Call {
        /// Who calls.
        instance: InstanceId,
        /// What.
        call: Call,
    },
    /// To the simulator itself.
    Admin(Admin),
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// Of a call.
    Answer(Answer),
    /// Of a call that failed.
    Failure(Failure),
    /// Of the simulator.
    Admin(AdminAnswer),
    /// The simulator cannot do that, in words; or the request is not one.
    Refused(String),
}
