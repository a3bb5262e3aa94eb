//! Reading the view of another version: a field that an older ipamd does not send gets a default that says
//! nothing; a field that a newer one adds is passed over.

use serde_json::{Value, json};
use veni_core::wire::inspect::View;

/// The view in `reply`, with what is missing filled in.
pub(super) fn view(mut reply: Value) -> serde_json::Result<View> {
    fill(&mut reply, &template());
    serde_json::from_value(reply)
}

/// Every field of the view that has no default of its own. A list holds its element's template.
fn template() -> Value {
    let pool = json!({
        "total": 0, "assigned": 0, "available": 0, "cooling": 0, "releasing": 0, "pending": 0, "waiting": 0,
    });
    json!({
        "daemon": {"version": "unknown", "pid": 0, "uptime_secs": 0, "ready": false, "provider": "unknown"},
        "node": {
            "instance_id": "i-unknown", "instance_type": "unknown.unknown", "address": "0.0.0.0",
            "max_enis": 0, "addresses_per_eni": 0, "vpc_cidrs": [],
        },
        "pool": pool,
        "enis": [{
            "primary": false, "device_index": 0, "phase": "unknown", "table": 0, "mark": 0, "pool": pool,
        }],
        "addresses": [{"state": "unknown"}],
        "plan": {"wanted": 0, "running": [], "reasons": [], "waiting_for": []},
        "problems": [{"kind": "unknown", "message": "", "age_secs": 0}],
    })
}

fn fill(value: &mut Value, template: &Value) {
    match (value, template) {
        (Value::Object(fields), Value::Object(defaults)) => {
            for (name, default) in defaults {
                match fields.get_mut(name) {
                    Some(field) if !field.is_null() => fill(field, default),
                    _ => {
                        fields.insert(name.clone(), bare(default));
                    }
                }
            }
        }
        (Value::Array(elements), Value::Array(defaults)) => {
            for element in elements {
                if let Some(default) = defaults.first() {
                    fill(element, default);
                }
            }
        }
        _ => {}
    }
}

/// A template as a value: lists are empty.
fn bare(template: &Value) -> Value {
    match template {
        Value::Array(_) => json!([]),
        Value::Object(fields) => {
            fields.iter().map(|(name, field)| (name.clone(), bare(field))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_reads_as_a_view_that_says_nothing() {
        let view = view(json!({"version": 1, "result": "inspect"})).unwrap();
        assert_eq!(
            (view.daemon.version.as_str(), view.pool.total, view.enis.len()),
            ("unknown", 0, 0)
        );
    }

    #[test]
    fn every_field_of_every_part_may_be_missing_or_new() {
        let full: Value = serde_json::from_str(crate::fixtures::BUSY).unwrap();
        let mut older = 0;
        for (section, fields) in full.as_object().unwrap() {
            let Some(fields) = fields.as_object() else {
                continue;
            };
            for name in fields.keys() {
                let mut answer = full.clone();
                answer[section].as_object_mut().unwrap().remove(name);
                view(answer).unwrap_or_else(|error| panic!("without {section}.{name}: {error}"));
                older += 1;
            }
        }
        assert!(older > 20, "{older} fields were left out");
        let mut newer = full;
        newer["pool"]["from_the_future"] = json!({"a": [1]});
        newer["enis"][0]["from_the_future"] = json!(1);
        assert!(view(newer).is_ok());
    }

    #[test]
    fn an_eni_without_its_newest_fields_is_kept() {
        let view = view(json!({"enis": [{"id": "eni-1", "primary": true, "pool": {"total": 3}}]}))
            .unwrap();
        assert_eq!((view.enis[0].pool.total, view.enis[0].pool.cooling), (3, 0));
        assert_eq!(view.enis[0].phase, "unknown");
    }
}
