//! What the extension tells whoever listens at the socket that [`VARIABLE`] names
//! (`semantics/veni_ec2_semantics/feed.py`): each ENI that became another, before the call that did it is answered.

use serde::Deserialize;
use veni_core::id::EniId;
use veni_provider::Interface;

/// The variable with the socket's path.
pub const VARIABLE: &str = "VENI_EC2_FEED";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// A new ENI, or one that is not as it was last told.
    Interface(Box<Interface>),
    /// One that is no more.
    Gone(EniId),
}

impl News {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is none of the extension's.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}
