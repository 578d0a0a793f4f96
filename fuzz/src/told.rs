//! What servers tell each other through a broker, whoever wrote it: what is taken can be said again, and says the same.

use tidewire::cluster::message::Envelope;

/// Reads `data` as a message.
pub fn check(data: &[u8]) {
    let Ok(envelope) = Envelope::decode(data) else { return };
    assert!(envelope.node.0 > 0);
    assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
}
