//! Control requests: whatever is accepted is an object of a known type, and nothing in it was ignored.

use serde_json::Value;
use tidewire::wire::control::Request;

/// Reads `data` as a request.
pub fn check(data: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(data) else { return };
    let value: Value = serde_json::from_slice(data).expect("a request is JSON");
    let Value::Object(mut fields) = value else { panic!("a request is an object") };
    let knows_its_fields = match request {
        Request::Subscribe(_)
        | Request::Unsubscribe(_)
        | Request::Advertise(_)
        | Request::Ping(_)
        | Request::Auth(_)
        | Request::Presence(_)
        | Request::Stats(_)
        | Request::History(_) => true,
    };
    fields.insert("no such field".into(), Value::Null);
    let with_unknown = Value::Object(fields).to_string();
    assert_eq!(serde_json::from_str::<Request>(&with_unknown).is_err(), knows_its_fields, "{with_unknown}");
}
