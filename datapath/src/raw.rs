//! Netlink messages, as bytes, of the families that no crate here speaks (nfnetlink), and of multicast groups.
//!
//! Invariant: every length is checked before it is used; what does not fit ends the iteration.

/// `sizeof(struct nlmsghdr)`.
pub(crate) const HEADER_BYTES: usize = 16;
/// `NLA_F_NESTED`.
pub(crate) const NESTED: u16 = 0x8000;

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            sequence: u32_at(datagram, 8)?,
            body: datagram.get(HEADER_BYTES..length)?,
        };
        datagram = datagram.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`: type without flags, and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of one attribute.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// An attribute's text, without its end.
pub(crate) fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// One message: header and body.
pub(crate) fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("messages made here are small");
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0u32.to_ne_bytes());
    out.extend(body);
    out
}

/// Appends an attribute, padded.
pub(crate) fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes made here are small");
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(align(out.len()), 0);
}

fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_back() {
        let mut body = Vec::new();
        push(&mut body, 7, b"abcde");
        push(&mut body, 9 | NESTED, &[1, 2, 3, 4]);
        let datagram = [encode(3, 5, 11, &body), encode(4, 0, 12, &[])].concat();
        let all: Vec<_> = messages(&datagram).map(|m| (m.kind, m.sequence)).collect();
        assert_eq!(all, [(3, 11), (4, 12)]);
        assert_eq!(attribute(&body, 7), Some(&b"abcde"[..]));
        assert_eq!(attribute(&body, 9), Some(&[1, 2, 3, 4][..]));
    }

    #[test]
    fn false_lengths_end_the_iteration() {
        for length in [0u32, 3, 15, 17, u32::MAX] {
            let mut datagram = encode(3, 0, 1, &[]);
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(messages(&datagram).count() == 0, "length {length}");
        }
        for broken in [&[0u8, 0, 1, 0][..], &[9, 0, 1, 0, 1], &[4]] {
            assert_eq!(attributes(broken).count(), 0, "{broken:?}");
        }
    }
}
