//! How far the server's clock is ahead of the generator's: NTP's formula (RFC 5905, section 8) over the protocol's `ping`.
//! Nothing is corrected here, only estimated.

use crate::clock::Clock;
use crate::control::{Event, Request};
use crate::result::ClockOffset;
use crate::scenario::Codec;
use crate::ws::{Connection, Endpoint, Opcode, READ_BUFFER_BYTES};

/// Round trips; the shortest counts.
const ROUNDS: u64 = 32;

/// An estimate and what it may be off by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Estimate {
    offset_ns: i64,
    /// Round trip without the server's own time.
    delay_ns: u64,
}

/// From the client's sending, the server's reading and answering, the client's reading, each by its own clock.
const fn of_round(sent_ns: u64, received_ns: u64, answered_ns: u64, arrived_ns: u64) -> Estimate {
    let there = received_ns.wrapping_sub(sent_ns).cast_signed();
    let back = answered_ns.wrapping_sub(arrived_ns).cast_signed();
    let (whole, inside) = (arrived_ns.saturating_sub(sent_ns), answered_ns.saturating_sub(received_ns));
    Estimate { offset_ns: there.midpoint(back), delay_ns: whole.saturating_sub(inside) }
}

/// Asks the server several times.
pub(crate) fn estimate(endpoint: &Endpoint, clock: Clock) -> Result<Estimate, String> {
    let failed = |why: &dyn std::fmt::Display| format!("cannot compare clocks: {why}");
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut connection = Connection::open(endpoint, Some(Codec::Protobuf.subprotocol()), None)
        .map_err(|error| failed(&error))?;
    let mut best: Option<Estimate> = None;
    for id in 1..=ROUNDS {
        let sent_ns = clock.now_ns();
        connection.send_text(&Request::Ping { id }.to_json()).map_err(|error| failed(&error))?;
        let (received_ns, answered_ns) = connection
            .wait_for(&mut buffer, |message| match message.opcode {
                Opcode::Text => match Event::parse(message.payload) {
                    Ok(Event::Pong { received_ns, sent_ns }) => Ok(Some((received_ns.0, sent_ns.0))),
                    _ => Ok(None),
                },
                _ => Ok(None),
            })
            .map_err(|error| failed(&error))?;
        let round = of_round(sent_ns, received_ns, answered_ns, clock.now_ns());
        best = Some(best.map_or(round, |best| if round.delay_ns < best.delay_ns { round } else { best }));
    }
    best.ok_or_else(|| failed(&"there was no answer"))
}

/// Of a whole run: one estimate before, one after.
pub(crate) const fn between(before: Estimate, after: Estimate) -> ClockOffset {
    let best = if before.delay_ns <= after.delay_ns { before } else { after };
    ClockOffset {
        offset_ns: best.offset_ns,
        error_ns: best.delay_ns.div_ceil(2),
        drift_ns: after.offset_ns - before.offset_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_of_ntp() {
        // (server ahead by, way there, inside the server, way back, estimated, error)
        let cases: [(i64, u64, u64, u64, i64, u64); 5] = [
            (0, 100, 10, 100, 0, 200),
            (1_000_000, 100, 10, 100, 1_000_000, 200),
            (-1_000_000, 100, 10, 100, -1_000_000, 200),
            // An uneven way looks like an offset, but never more than the error says.
            (0, 200, 10, 100, 50, 300),
            (-7, 0, 0, 300, -157, 300),
        ];
        for (ahead, there, inside, back, offset_ns, delay_ns) in cases {
            let sent = 1_763_864_091_000_000_000u64;
            let received = (sent + there).saturating_add_signed(ahead);
            let got = of_round(sent, received, received + inside, sent + there + inside + back);
            assert_eq!(got, Estimate { offset_ns, delay_ns });
            assert!((offset_ns - ahead).unsigned_abs() <= delay_ns.div_ceil(2));
        }
    }

    #[test]
    fn the_shorter_round_trip_counts() {
        let (before, after) =
            (Estimate { offset_ns: 5, delay_ns: 11 }, Estimate { offset_ns: 9, delay_ns: 30 });
        assert_eq!(between(before, after), ClockOffset { offset_ns: 5, error_ns: 6, drift_ns: 4 });
        assert_eq!(between(after, before), ClockOffset { offset_ns: 5, error_ns: 6, drift_ns: -4 });
    }
}
