//! The environment's variables: those that are not text are told where they are ours, and passed over where not.

use std::ffi::OsString;

use veni_core::config::{ConfigError, find};

/// The variables that are text, and what is wrong with ours among the others.
pub fn read(
    vars: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Vec<(String, String)>, Vec<ConfigError>) {
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    for (name, value) in vars {
        // None of ours has such a name.
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => text.push((name, value)),
            Err(value) if find(&name).is_some() => errors.push(ConfigError {
                variable: name,
                value: value.to_string_lossy().chars().take(128).collect(),
                problem: "expected UTF-8: some of its bytes, shown as \u{fffd}, are not".to_owned(),
            }),
            Err(_) => {}
        }
    }
    (text, errors)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn what_is_not_text_is_told_of_ours_and_passed_over_of_others() {
        let var = |name: &[u8], value: &[u8]| {
            (OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()))
        };
        let (text, errors) = read([
            var(b"WARM_IP_TARGET", b"5"),
            var(b"LS_COLORS", b"\xff"),
            var(b"\xfe", b"x"),
            var(b"VENI_STATE_DIR", b"/run/\xffveni"),
        ]);
        assert_eq!(text, [("WARM_IP_TARGET".to_owned(), "5".to_owned())]);
        assert_eq!(errors.len(), 1, "{errors:?}");
        let told = errors[0].to_string();
        for part in ["VENI_STATE_DIR", "/run/\u{fffd}veni", "expected UTF-8"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
