//! The frames that netlink messages travel in (`struct nlmsghdr`), and the kernel's verdicts (`struct nlmsgerr`).
//!
//! Pure: bytes in, bytes out. Every length is checked before it is used.

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NetlinkHeader,
};

use super::{BatchError, Error};

/// `sizeof(struct nlmsghdr)`.
pub(super) const HEADER_BYTES: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const ATTR_MESSAGE: u16 = 1;

/// One message as received.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The sequence number of the request that it answers.
    pub sequence: u32,
    /// Its payload.
    pub body: Body<'a>,
    message_type: u16,
    flags: u16,
    length: u32,
}

/// What a frame holds.
#[derive(Debug)]
pub enum Body<'a> {
    /// A verdict on a request (`NLMSG_ERROR`).
    Outcome(Outcome),
    /// The end of a dump (`NLMSG_DONE`).
    Done(Outcome),
    /// An object, not decoded.
    Object(&'a [u8]),
}

/// A verdict: `errno` is 0 for success.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    errno: i32,
    message: String,
}

// === impl Outcome ===

impl Outcome {
    /// The failure of message `index`, if it is one.
    #[must_use]
    pub fn into_error(self, index: usize) -> Option<Error> {
        let Self { errno, message } = self;
        (errno != 0).then_some(Error::Rejected(BatchError { index, errno, ext_ack: message }))
    }

    /// `body` starts with a negative errno. For `NLMSG_ERROR` the offending header follows, and its payload unless
    /// the frame is capped; attributes come last.
    fn parse(body: &[u8], flags: u16, echoes_request: bool) -> Self {
        let errno = u32_at(body, 0).map_or(0, u32::cast_signed).saturating_neg();
        let mut skip = 4;
        if echoes_request {
            skip += if flags & NLM_F_CAPPED == 0 {
                align(u32_at(body, 4).unwrap_or(0) as usize)
            } else {
                HEADER_BYTES
            };
        }
        let attributes = body.get(skip..).filter(|_| flags & NLM_F_ACK_TLVS != 0);
        Self { errno, message: attributes.and_then(ext_ack).unwrap_or_default() }
    }
}

// === impl Frame ===

impl Frame<'_> {
    /// Whether the kernel says that what it dumps changed meanwhile.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    pub(super) fn header(&self) -> NetlinkHeader {
        let mut header = NetlinkHeader::default();
        header.length = self.length;
        header.message_type = self.message_type;
        header.flags = self.flags;
        header.sequence_number = self.sequence;
        header
    }
}

/// The messages of a datagram, in order. After an error nothing follows.
pub fn frames(mut datagram: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, Error>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let (frame, rest) = match split(datagram) {
            Ok((frame, rest)) => (Ok(frame), rest),
            Err(error) => (Err(error), &[][..]),
        };
        datagram = rest;
        Some(frame)
    })
}

/// Appends one message with a body of `length` bytes, which `write` fills.
pub(super) fn encode(
    out: &mut Vec<u8>,
    message_type: u16,
    flags: u16,
    sequence: u32,
    length: usize,
    write: impl FnOnce(&mut [u8]),
) {
    let start = out.len();
    let total = HEADER_BYTES + length;
    out.resize(start + align(total), 0);
    let frame = &mut out[start..];
    let length_field = u32::try_from(total).expect("a message is far below 4 GiB");
    frame[0..4].copy_from_slice(&length_field.to_ne_bytes());
    frame[4..6].copy_from_slice(&message_type.to_ne_bytes());
    frame[6..8].copy_from_slice(&flags.to_ne_bytes());
    frame[8..12].copy_from_slice(&sequence.to_ne_bytes());
    write(&mut frame[HEADER_BYTES..total]);
}

/// Adds flags to the message at the start of `frame`.
pub(super) fn add_flags(frame: &mut [u8], flags: u16) {
    let old = u16::from_ne_bytes([frame[6], frame[7]]);
    frame[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
}

fn split(datagram: &[u8]) -> Result<(Frame<'_>, &[u8]), Error> {
    let broken = || Error::Decode("a frame whose length is not its own".to_owned());
    let length = u32_at(datagram, 0).ok_or_else(broken)?;
    let total = length as usize;
    let body = datagram.get(HEADER_BYTES..total).ok_or_else(broken)?;
    let message_type = u16_at(datagram, 4).ok_or_else(broken)?;
    let flags = u16_at(datagram, 6).ok_or_else(broken)?;
    let sequence = u32_at(datagram, 8).ok_or_else(broken)?;
    let body = match message_type {
        NLMSG_ERROR => Body::Outcome(Outcome::parse(body, flags, true)),
        NLMSG_DONE => Body::Done(Outcome::parse(body, flags, false)),
        _ => Body::Object(body),
    };
    let rest = datagram.get(align(total)..).unwrap_or_default();
    Ok((Frame { sequence, body, message_type, flags, length }, rest))
}

fn ext_ack(mut attributes: &[u8]) -> Option<String> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & 0x3fff; // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
        let value = attributes.get(4..length)?;
        if kind == ATTR_MESSAGE {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(align(length)..)?;
    }
}

fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_frame(errno: i32, flags: u16, attributes: &[u8]) -> Vec<u8> {
        let mut body = (-errno).to_ne_bytes().to_vec();
        body.extend([0; HEADER_BYTES]);
        body.extend(attributes);
        let mut out = Vec::new();
        encode(&mut out, NLMSG_ERROR, flags, 7, body.len(), |b| b.copy_from_slice(&body));
        out
    }

    #[test]
    fn the_kernels_words_are_read_from_a_capped_error() {
        let mut attributes = vec![8, 0, 2, 0, 9, 9, 9, 9]; // NLMSGERR_ATTR_OFFS first
        attributes.extend([9, 0, 1, 0, b'n', b'o', b'p', b'e', 0]);
        let datagram = error_frame(17, NLM_F_CAPPED | NLM_F_ACK_TLVS, &attributes);
        let frame = frames(&datagram).next().unwrap().unwrap();
        let Body::Outcome(outcome) = frame.body else { panic!("not an outcome") };
        let error = outcome.into_error(3).unwrap();
        assert_eq!(error.to_string(), "File exists (os error 17): nope");
        assert_eq!((error.errno(), error.index()), (Some(17), Some(3)));
    }

    #[test]
    fn an_acknowledgement_is_no_error() {
        let datagram = error_frame(0, NLM_F_CAPPED, &[]);
        let frame = frames(&datagram).next().unwrap().unwrap();
        let Body::Outcome(outcome) = frame.body else { panic!("not an outcome") };
        assert!(outcome.into_error(0).is_none());
    }

    #[test]
    fn frames_with_false_lengths_are_errors_and_end_the_datagram() {
        for length in [0u32, 1, 15, 21, u32::MAX] {
            let mut datagram = error_frame(0, 0, &[]);
            datagram.truncate(20);
            datagram[0..4].copy_from_slice(&length.to_ne_bytes());
            let all: Vec<_> = frames(&datagram).collect();
            assert!(matches!(&all[..], [Err(Error::Decode(_))]), "length {length}: {all:?}");
        }
    }

    #[test]
    fn attributes_cut_short_are_no_text() {
        for attributes in [&[][..], &[9], &[9, 0, 1, 0, b'n'], &[0, 0, 0, 0]] {
            assert_eq!(ext_ack(attributes), None, "{attributes:?}");
        }
    }

    #[test]
    fn several_frames_of_a_datagram_come_in_order() {
        let mut datagram = Vec::new();
        for sequence in [1, 2] {
            encode(&mut datagram, 16, NLM_F_DUMP_INTR, sequence, 5, |b| b.fill(1));
        }
        let sequences: Vec<_> = frames(&datagram).map(|f| f.unwrap().sequence).collect();
        assert_eq!(sequences, [1, 2]);
        assert!(frames(&datagram).all(|f| f.unwrap().is_interrupted()));
    }
}
