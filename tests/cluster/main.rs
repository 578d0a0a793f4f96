//! Several servers and a broker, all of them processes of their own: what is published on one, received on another, with every
//! kind of broker, well and in trouble. A test waits for events, with a deadline that only a failure reaches.
//!
//! With `TIDEWIRE_CLUSTER_TABLE=1` the test `table` runs all and prints what each case came to, for docs/SCALING.md.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use tidewire::broker::Kind;

mod cases;
mod faults;
mod follower;
mod presence;
mod proxy;
mod restart;
mod rig;
#[path = "../broker/servers.rs"]
#[expect(dead_code, reason = "the contract's tests need more of it")]
mod servers;
#[path = "../end_to_end/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests of one server need more of it")]
mod support;

/// Its name, and itself: it tells what it saw, in words for a table.
type Case = (&'static str, fn(&'static Kind) -> String);

macro_rules! for_each_case {
    ($then:ident! $($what:tt)*) => {
        $then! { ($($what)*)
            cases by_name_and_by_pattern;
            cases two_publishers_are_two_streams;
            cases nothing_comes_back;
            cases interest_ends;
            cases inboxes_of_users;
            cases revocations;
            cases other_codecs_and_fewer_samples;
            cases few_messages_for_many_samples;
            cases resume_on_another_server;
            presence who_is_there_on_all_servers;
            cases resume_ahead_of_the_other_server;
            faults absent_at_the_start;
            faults killed_and_started_again;
            faults stopped_for_a_while;
            faults wrong_password;
            faults full;
            faults foreign_messages;
            faults an_older_history;
            presence who_is_there_without_the_broker;
            presence foreign_words_about_who_is_there;
            restart rolling_restart;
        }
    };
}

macro_rules! tests_of {
    (($module:ident $scheme:literal) $($file:ident $case:ident;)*) => {
        mod $module {
            $(
                #[test]
                fn $case() {
                    super::$file::$case(super::kind($scheme));
                }
            )*
        }
    };
}

for_each_case!(tests_of! redis "redis");
for_each_case!(tests_of! redis_streams "redis-streams");
for_each_case!(tests_of! nats "nats");
for_each_case!(tests_of! jetstream "jetstream");

macro_rules! all_cases {
    (() $($file:ident $case:ident;)*) => {
        &[$((stringify!($case), $file::$case as fn(&'static Kind) -> String),)*]
    };
}

const CASES: &[Case] = for_each_case!(all_cases!);

fn kind(scheme: &str) -> &'static Kind {
    Kind::ALL.iter().find(|kind| kind.scheme == scheme).expect("a scheme")
}

#[test]
fn table() {
    let all: Vec<_> = Kind::ALL.iter().map(|kind| kind.scheme).collect();
    assert_eq!(all, ["redis", "redis-streams", "nats", "jetstream"], "a kind of broker is not tested");
    if std::env::var_os("TIDEWIRE_CLUSTER_TABLE").is_none() {
        return;
    }
    let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name).collect();
    println!("| Case | {} |", names.join(" | "));
    println!("| --- |{}", " --- |".repeat(names.len()));
    for (name, case) in CASES {
        let outcomes: Vec<_> = Kind::ALL
            .iter()
            .map(|kind| {
                catch_unwind(AssertUnwindSafe(|| case(kind))).unwrap_or_else(|_| "**failed**".to_owned())
            })
            .collect();
        println!("| {} | {} |", name.replace('_', " "), outcomes.join(" | "));
    }
}

/// The ledger of a rolling restart, a row for each broker. With `TIDEWIRE_RESTART_TABLE=1`.
#[test]
fn restart_table() {
    if std::env::var_os("TIDEWIRE_RESTART_TABLE").is_none() {
        return;
    }
    println!("{}", restart::HEAD);
    for kind in Kind::ALL {
        println!("{}", restart::restart_all(kind).row(kind));
    }
}
