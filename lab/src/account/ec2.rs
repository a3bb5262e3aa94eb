//! Requests to an EC2 that checks no signature: the Query protocol, over a connection of their own.
//!
//! Deliberately absent: the AWS SDK, which costs minutes and 8 GiB to compile, and a parser of XML. Answers here are flat
//! enough to be searched for their elements.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

use crate::{
    error::{Context as _, Error, Result},
    ns::Namespace,
};

/// Where everything is.
pub(super) const REGION: &str = "eu-central-1";
/// The access key of nobody, and its secret.
pub(super) const KEY: &str = "test";
const VERSION: &str = "2016-11-15";
/// An answer that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// EC2 at an address.
#[derive(Debug, Clone)]
pub(super) struct Ec2 {
    /// From where it is asked.
    pub(super) from: Namespace,
    pub(super) at: SocketAddrV4,
}

/// What it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer(String);

// === impl Ec2 ===

impl Ec2 {
    /// Does `action` with these parameters.
    ///
    /// # Errors
    /// When it cannot be asked, or refuses: in its words.
    pub(super) fn ask(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Answer> {
        let mut body = format!("Action={action}&Version={VERSION}");
        for (name, value) in parameters {
            body.push_str(&format!("&{name}={}", encode(value)));
        }
        let text = self.from.run(|| {
            self.post(&body).context(|| format!("cannot ask EC2 at {} for {action}", self.at))
        })?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let answer = Answer(body.to_owned());
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status.starts_with('2') {
            return Ok(answer);
        }
        let message = answer.first("Message").unwrap_or(body);
        Err(Error::invalid(format!("EC2 refuses {action} ({status}): {message}")))
    }

    /// HTTP/1.0: the answer ends with the connection.
    fn post(&self, body: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.at)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!(
            "POST / HTTP/1.0\r\nHost: ec2.{REGION}.amazonaws.com\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={KEY}/20260101/{REGION}/ec2/aws4_request, SignedHeaders=host, Signature=0\r\n\
             Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

// === impl Answer ===

impl Answer {
    /// The text of the first element of this name.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The texts of all elements of this name, which hold no others.
    pub(super) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let mut rest = self.0.as_str();
        std::iter::from_fn(move || {
            let (_, after) = rest.split_once(open.as_str())?;
            let (text, after) = after.split_once(close.as_str())?;
            rest = after;
            Some(text)
        })
    }

    /// As [`Answer::first`], parsed.
    ///
    /// # Errors
    /// When there is none, or it is something else.
    pub(super) fn id<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let text = self.first(name);
        text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            Error::invalid(format!("EC2 answers {text:?} for {name}: {:.200}", self.0))
        })
    }
}

/// RFC 3986, section 2.1: all but the unreserved characters.
fn encode(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes everything");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_by_their_whole_name() {
        let text =
            "<a><subnetId>subnet-1</subnetId><subnetIdSet/><subnetId>subnet-2</subnetId></a>";
        let answer = Answer(text.to_owned());
        assert_eq!(answer.first("subnetId"), Some("subnet-1"));
        assert_eq!(answer.all("subnetId").collect::<Vec<_>>(), ["subnet-1", "subnet-2"]);
        assert_eq!(answer.first("vpcId"), None);
        assert!(answer.id::<veni_core::id::VpcId>("subnetId").is_err());
    }

    #[test]
    fn values_are_percent_encoded() {
        assert_eq!(encode("10.0.0.0/16"), "10.0.0.0%2F16");
        assert_eq!(encode("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
