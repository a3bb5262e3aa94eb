//! A simulated region over a unix socket: one process (the lab) holds it, every node's daemon reaches it.
//!
//! JSON, one message a line, at most [`MESSAGE_LIMIT`] bytes. A connection carries one request at a time; the client
//! here opens one per call, so an idle daemon costs nothing and there is nothing to reconnect. A call that has
//! reached the server runs to its end, whether or not its client still waits: as with EC2, a lost connection is a
//! lost answer.
//!
//! Deliberately absent: authentication (the socket's mode is the door), time-outs (the caller has its own).

mod client;
mod drive;
mod line;
mod message;
mod server;

pub use self::{
    client::{AdminClient, AdminError, Client},
    drive::{RealTime, drive},
    server::{Handler, SimHandler, serve},
};

/// The longest message, in bytes: a state of some ten thousand ENIs.
pub const MESSAGE_LIMIT: usize = 64 << 20;
