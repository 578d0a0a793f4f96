//! The contract of the broker seam: the same cases against every kind of broker, with the real servers. A test waits for
//! events, with a deadline that only a failure reaches.
//!
//! A new broker is an arm of [`program`], what a foreigner can do to it in `cases.rs`, and a line of `for_each_case!` below.
//! With `TIDEWIRE_CONTRACT_TABLE=1` the test `table` runs all and prints what each case came to, for docs/SCALING.md.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use tidewire::broker::Kind;

mod cases;
mod credentials;
mod node;
mod relay;
mod servers;

use node::Rig;
use servers::Program;

/// A case tells what it saw, in words for a table.
type Outcome = Pin<Box<dyn Future<Output = String>>>;

/// Its name and itself.
type Case = (&'static str, fn(Rig) -> Outcome);

/// What serves a kind of broker.
fn program(kind: &Kind) -> Program {
    match kind.scheme {
        "redis" | "redis-streams" => Program::Redis,
        "nats" => Program::Nats,
        "jetstream" => Program::JetStream,
        other => panic!("no server is known for {other}://"),
    }
}

macro_rules! for_each_case {
    ($then:ident! $($what:tt)*) => {
        $then! { ($($what)*)
            messages_of_a_topic_stay_in_order;
            what_was_published_before_is_the_backlog;
            backlog_and_live_are_one_sequence;
            nothing_comes_after_unsubscribe;
            a_thousand_topics;
            payloads_of_every_kind;
            a_payload_over_the_limit;
            absent_at_the_start;
            killed_and_started_again;
            cut_off_for_a_while;
            trimmed_while_cut_off;
            history_deleted_while_cut_off;
            suspended_for_a_while;
            a_reader_that_is_slow;
            a_connection_that_is_slow;
            a_wrong_password;
            a_file_of_credentials;
            the_second_of_two_hosts;
            over_tls;
            full;
            foreign_messages;
            stopped_with_messages_waiting;
        }
    };
}

macro_rules! tests_of {
    (($module:ident $scheme:literal) $($case:ident;)*) => {
        mod $module {
            $(
                #[test]
                fn $case() {
                    super::run(super::kind($scheme), |rig| Box::pin(super::cases::$case(rig)));
                }
            )*
        }
    };
}

for_each_case!(tests_of! redis "redis");
for_each_case!(tests_of! redis_streams "redis-streams");
for_each_case!(tests_of! nats "nats");
for_each_case!(tests_of! jetstream "jetstream");

/// The schemes above.
const TESTED: [&str; 4] = ["redis", "redis-streams", "nats", "jetstream"];

macro_rules! all_cases {
    (() $($case:ident;)*) => {
        &[$((stringify!($case), (|rig| Box::pin(cases::$case(rig))) as fn(Rig) -> Outcome),)*]
    };
}

const CASES: &[Case] = for_each_case!(all_cases!);

fn kind(scheme: &str) -> &'static Kind {
    Kind::ALL.iter().find(|kind| kind.scheme == scheme).expect("a scheme")
}

fn run(kind: &'static Kind, case: fn(Rig) -> Outcome) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(case(Rig::new(kind, program(kind))))
}

#[test]
fn table() {
    let all: Vec<_> = Kind::ALL.iter().map(|kind| kind.scheme).collect();
    assert_eq!(all, TESTED, "a kind of broker is not tested");
    if std::env::var_os("TIDEWIRE_CONTRACT_TABLE").is_none() {
        return;
    }
    let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name).collect();
    println!("| Case | {} |", names.join(" | "));
    println!("| --- |{}", " --- |".repeat(names.len()));
    for (name, case) in CASES {
        let outcomes: Vec<_> = Kind::ALL
            .iter()
            .map(|kind| {
                catch_unwind(AssertUnwindSafe(|| run(kind, *case)))
                    .unwrap_or_else(|_| "**failed**".to_owned())
            })
            .collect();
        println!("| {} | {} |", name.replace('_', " "), outcomes.join(" | "));
    }
}
