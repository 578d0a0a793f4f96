//! The thread that speaks to the broker, and the handle of those who publish and subscribe. Each connection has a runtime of
//! its own: what a client library has spawned ends with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::driver::{Driver, Port};
use super::retry::Retry;
use super::{BrokerSettings, Events, Keep, Kind, Outgoing, Topic, Url, UrlError, tls, words};
use crate::config::file;

/// How long the end of the broker waits for what is still to be published.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a connection ended that panicked; the log has the place.
const PANICKED: &str = "a fault of this server, a panic; the log says where";

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `broker.url`.
    #[error("broker.url {0}")]
    Url(#[from] UrlError),
    /// A file that cannot be used.
    #[error("{setting} = {path:?}: {why}")]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file for what this broker or URL has not.
    #[error("{setting} is of no use here: {why}")]
    Useless {
        /// The setting that names it.
        setting: &'static str,
        /// Why, and the remedy.
        why: &'static str,
    },
    /// Threads, sockets, cryptography.
    #[error("the broker's thread cannot start: {0}")]
    System(String),
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Whether there is a connection.
    pub is_up: bool,
    /// Messages that the broker confirmed, and bytes of their payloads.
    pub published_messages: u64,
    /// See `published_messages`.
    pub published_bytes: u64,
    /// Messages that came in, and bytes of their payloads; those of backlogs, too.
    pub received_messages: u64,
    /// See `received_messages`.
    pub received_bytes: u64,
    /// Messages that were not published.
    pub lost_outgoing: u64,
    /// Messages that are known to be missing; one for each time that nobody knows how many.
    pub lost_incoming: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Connections and attempts that failed.
    pub failures: u64,
    /// Bytes to publish that wait or are not confirmed yet.
    pub outgoing_bytes: usize,
    /// Bytes that wait to be read from [`Events`].
    pub incoming_bytes: usize,
    /// Topics subscribed to.
    pub topics: usize,
}

/// The handle. Nothing of it waits for the broker. Dropping it is [`Broker::stop`].
#[derive(Debug)]
pub struct Broker {
    port: Arc<Port>,
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Broker {
    /// Starts the thread, which connects by itself; whether it could is told by [`Events`].
    ///
    /// # Errors
    /// What can be known without the broker: the URL cannot be read, or a file that is named. Never repeats a secret.
    pub fn start(settings: BrokerSettings) -> Result<(Self, Events), StartError> {
        let url = Url::parse(settings.url.expose())?;
        check_files(&settings, &url)?;
        let driver = url.kind.driver;
        let port = Arc::new(Port::new(settings, url));
        let stop = Arc::new(Stop::default());
        let events = Events { lane: Arc::clone(&port.lane) };
        let thread = {
            let (port, stop) = (Arc::clone(&port), Arc::clone(&stop));
            std::thread::Builder::new()
                .name("broker".to_owned())
                .spawn(move || run(&port, &stop, &mut *driver()))
                .map_err(|error| StartError::System(error.to_string()))?
        };
        Ok((Self { port, stop, thread: Mutex::new(Some(thread)) }, events))
    }

    /// Publishes when it can. What is not published is told as [`super::Event::Lost`].
    pub fn publish(&self, message: Outgoing) {
        self.port.publish(message);
    }

    /// Subscribes; [`super::Event::Subscribed`] says from when on. A topic that is subscribed to stays as it is. `false` if there are
    /// [`BrokerSettings::topics_max`] already.
    #[must_use]
    pub fn subscribe(&self, topic: Topic, keep: Keep) -> bool {
        self.port.interest.add(topic, keep)
    }

    /// Ends a subscription: no event of it is read from here on.
    pub fn unsubscribe(&self, topic: &str) {
        self.port.interest.remove(topic);
    }

    /// What kind of broker it is.
    #[must_use]
    pub fn kind(&self) -> &'static Kind {
        self.port.url.kind
    }

    /// Where it is, without a password.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.port.url
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.port.counts.is_up.load(Ordering::Relaxed)
    }

    /// What happened since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let counts = &self.port.counts;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            is_up: self.is_up(),
            published_messages: read(&counts.published_messages),
            published_bytes: read(&counts.published_bytes),
            received_messages: read(&counts.received_messages),
            received_bytes: read(&counts.received_bytes),
            lost_outgoing: read(&counts.lost_outgoing),
            lost_incoming: read(&counts.lost_incoming),
            connections: read(&counts.connections),
            failures: read(&counts.failures),
            outgoing_bytes: self.port.queue.bytes(),
            incoming_bytes: self.port.lane.bytes(),
            topics: self.port.interest.len(),
        }
    }

    /// Publishes what waits, within [`FLUSH_TIMEOUT`] and only if there is a connection, and ends. Does not wait for it: after
    /// the last event, [`Events::recv`] returns `None`.
    pub fn stop(&self) {
        self.stop.set();
    }

    /// Waits for the thread's end, after [`Broker::stop`]. Blocks, at most for [`FLUSH_TIMEOUT`] and what a connection takes to
    /// end; for the end of a program.
    pub fn join(&self) {
        self.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the broker's thread panicked");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A stop that both a thread and a task can wait for.
#[derive(Debug, Default)]
struct Stop {
    wanted: Mutex<bool>,
    thread: Condvar,
    task: Notify,
}

impl Stop {
    fn set(&self) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.thread.notify_all();
        self.task.notify_one();
    }

    fn is_set(&self) -> bool {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most that long.
    fn wait(&self, delay: Duration) {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.thread.wait_timeout_while(wanted, delay, |wanted| !*wanted);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

fn run(port: &Arc<Port>, stop: &Stop, driver: &mut dyn Driver) {
    /// However the thread ends, nobody waits for events that do not come.
    struct End<'a>(&'a Port);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.counts.is_up.store(false, Ordering::Relaxed);
            self.0.lane.end();
        }
    }
    let _end = End(port);
    let mut retry = Retry::default();
    while !stop.is_set() {
        let begun = Instant::now();
        port.begin();
        let why = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let life = || {
                    runtime.block_on(async {
                        tokio::select! {
                            why = driver.run(port) => Some(why),
                            () = stopped(port, stop) => None,
                        }
                    })
                };
                // What a broker sends must not part this server from the others for good, and its clients can do without them
                // for a while: a panic costs a connection. What it leaves behind is what any lost connection does.
                let why = catch_unwind(AssertUnwindSafe(life)).unwrap_or_else(|_| Some(PANICKED.to_owned()));
                // A look-up of a name may take longer than anybody wants to wait.
                runtime.shutdown_background();
                why
            }
            Err(error) => Some(format!("no runtime: {}", words::foreign(&error))),
        };
        let Some(why) = why else { break };
        port.ended(why);
        stop.wait(retry.delay(begun.elapsed(), fastrand::f64()));
    }
}

/// Waits until a stop is wanted, and then for what is still to be published.
async fn stopped(port: &Port, stop: &Stop) {
    while !stop.is_set() {
        stop.task.notified().await;
    }
    let flushed = async {
        loop {
            let settled = port.settled.notified();
            if port.queue.is_empty() {
                return;
            }
            settled.await;
        }
    };
    if port.counts.is_up.load(Ordering::Relaxed) {
        // What is left is lost, and told by nobody: the reader is leaving, too.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, flushed).await;
    }
}

fn check_files(settings: &BrokerSettings, url: &Url) -> Result<(), StartError> {
    const PASSWORD: &str = "broker.password_file";
    const CREDENTIALS: &str = "broker.credentials_file";
    const CA: &str = "broker.ca_file";
    let broken =
        |setting, path: &Path, why| StartError::File { setting, path: path.display().to_string(), why };
    for (setting, path) in [(PASSWORD, &settings.password_file), (CREDENTIALS, &settings.credentials_file)] {
        let Some(path) = path else { continue };
        let (_, mode) =
            file::read(path).map_err(|error| broken(setting, path, format!("it cannot be read: {error}")))?;
        if let Some(why) = file::open_to_others(mode) {
            return Err(broken(setting, path, why));
        }
    }
    if settings.password_file.is_some() && url.password.is_some() {
        return Err(StartError::Useless {
            setting: PASSWORD,
            why: "the URL has a password; leave out one of them",
        });
    }
    if settings.credentials_file.is_some() && !url.kind.takes_credentials {
        return Err(StartError::Useless {
            setting: CREDENTIALS,
            why: "only NATS has such files; use a password",
        });
    }
    if let Some(path) = &settings.ca_file {
        if !url.tls {
            return Err(StartError::Useless { setting: CA, why: "the URL is one without TLS; use one with" });
        }
        tls::config(Some(path)).map_err(|why| broken(CA, path, why))?;
    } else if url.tls {
        tls::config(None).map_err(StartError::System)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Event;
    use super::super::driver::Life;
    use super::*;

    /// Panics in its first connection, and stays in the second.
    struct Clumsy(bool);

    impl Driver for Clumsy {
        fn run<'a>(&'a mut self, port: &'a Arc<Port>) -> Life<'a> {
            Box::pin(async {
                assert!(std::mem::replace(&mut self.0, true), "this panic is part of the test");
                port.up();
                std::future::pending().await
            })
        }
    }

    #[tokio::test]
    async fn a_driver_that_panics_is_tried_again() {
        let url = "redis://localhost";
        let port = Arc::new(Port::new(BrokerSettings::new(url), Url::parse(url).expect("a URL")));
        let stop = Arc::new(Stop::default());
        let mut events = Events { lane: Arc::clone(&port.lane) };
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || run(&port, &stop, &mut Clumsy(false)))
        };
        assert_eq!(events.recv().await, Some(Event::Down { why: PANICKED.to_owned() }));
        assert_eq!(events.recv().await, Some(Event::Up));
        stop.set();
        assert_eq!(events.recv().await, None);
        thread.join().expect("it has ended");
    }
}
