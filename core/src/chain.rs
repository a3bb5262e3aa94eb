//! Errors in one line, for logs and messages.

/// `error` with its causes, separated by colons.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn causes_follow_in_their_order() {
        let layer = |text, source: Option<Layer>| Layer { text, source: source.map(Box::new) };
        let error = layer("adding", Some(layer("linking", Some(layer("no such device", None)))));
        assert_eq!(chain(&error), "adding: linking: no such device");
        assert_eq!(chain(&layer("alone", None)), "alone");
    }
}
