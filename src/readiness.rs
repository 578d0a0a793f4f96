//! Whether this server is worth being sent clients by a load balancer: it is not shutting down, and if there are to be others,
//! what it says to them arrives. Never decides what happens to a client that comes all the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Age of the last proof that the broker delivers, above which there is none: a probe goes out each second.
pub const PROOF_AGE_MAX: Duration = Duration::from_secs(3);

/// See the module's page. Only its writers and `/readyz` take the lock.
#[derive(Debug, Default)]
pub struct Readiness {
    serving: AtomicBool,
    broker: Mutex<Option<BrokerState>>,
}

#[derive(Clone, Debug)]
struct BrokerState {
    /// What is wrong, in words for people.
    why: String,
    proved: Option<Instant>,
}

impl Readiness {
    /// From now on new connections are welcome, or not any more.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// Whether new connections are welcome.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    /// There is a broker, and nothing is proved yet, for this reason.
    pub fn doubt_broker(&self, why: &str) {
        *self.broker() = Some(BrokerState { why: why.to_owned(), proved: None });
    }

    /// What this server has sent through the broker has come back.
    pub fn prove_broker(&self, now: Instant) {
        if let Some(state) = self.broker().as_mut() {
            state.proved = Some(now);
        }
    }

    /// Whether there is a broker, and what was sent through it has come back lately.
    #[must_use]
    pub fn has_proof(&self, now: Instant) -> bool {
        let proved = self.broker().as_ref().and_then(|state| state.proved);
        proved.is_some_and(|at| now.saturating_duration_since(at) <= PROOF_AGE_MAX)
    }

    /// Says why no new clients should be sent here.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self, now: Instant) -> Result<(), String> {
        if !self.is_serving() {
            return Err("draining".into());
        }
        match self.broker().as_ref() {
            Some(BrokerState { why, proved: None }) => Err(format!("broker: {why}")),
            Some(BrokerState { proved: Some(at), .. })
                if now.saturating_duration_since(*at) > PROOF_AGE_MAX =>
            {
                Err(format!(
                    "broker: nothing has come back for {} s",
                    now.saturating_duration_since(*at).as_secs()
                ))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn broker(&self) -> std::sync::MutexGuard<'_, Option<BrokerState>> {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_speaks_against_new_clients_is_said() {
        let now = Instant::now();
        let readiness = Readiness::default();
        assert_eq!(readiness.check(now), Err("draining".into()));
        readiness.set_serving(true);
        readiness.prove_broker(now);
        assert_eq!(readiness.check(now), Ok(()), "there is no broker");
        readiness.doubt_broker("connection refused");
        assert_eq!(readiness.check(now), Err("broker: connection refused".into()));
        readiness.prove_broker(now);
        assert_eq!(readiness.check(now + PROOF_AGE_MAX), Ok(()));
        let late = now + PROOF_AGE_MAX + Duration::from_secs(1);
        assert_eq!(readiness.check(late), Err("broker: nothing has come back for 4 s".into()));
        readiness.set_serving(false);
        assert_eq!(readiness.check(now), Err("draining".into()));
    }
}
