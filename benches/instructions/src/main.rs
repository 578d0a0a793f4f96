//! How many instructions does a delivery take? The same rooms as in benches/fanout.rs, a fixed number of rounds, so that the
//! count is the same on a busy machine and on an idle one: a guard, where times would only be noise.
//!
//! Run by scripts/instructions.sh below callgrind, which counts what `measured` does and compares it with
//! benches/instructions/counts.txt. By itself it prints how many deliveries that is.
//!
//! What would make it lie: another compiler, or a change of what a system call costs; the kernel's part is not in it.

#[path = "../../fanout/room.rs"]
mod room;

use room::{Drain, Room};

/// Rounds that are counted: enough that the 1 or 2 rounds in which a histogram or a queue is touched first do not show.
const ROUNDS: u64 = 200;

/// Name, subscribers, samples in a round.
const ROOMS: [(&str, usize, usize); 3] = [("narrow", 10, 1), ("wide", 100, 1), ("packed", 100, 32)];

fn main() {
    let wanted = std::env::args().nth(1).filter(|name| !name.starts_with('-'));
    for (name, subscribers, samples) in ROOMS {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            let mut room = Room::new(subscribers, samples);
            measured(&mut room);
            println!("{name} {}", ROUNDS * room.deliveries());
        }
    }
}

/// The name that callgrind looks for.
#[inline(never)]
fn measured(room: &mut Room) {
    for _ in 0..ROUNDS {
        room.round(Drain::Writer);
    }
}
