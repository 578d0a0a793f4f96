//! Sets a scenario up: connects publishers and subscribers, several at a time, and starts the threads that drive them.
//! Measures nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use crate::churn::{self, Churned};
use crate::clock::{Clock, nanos};
use crate::comeback::Comeback;
use crate::dialect::Dialect;
use crate::measure::{Counters, Interval, Recorder, Window, boundaries};
use crate::others::{self, Other, Others, Way};
use crate::pacer::{Pacer, Schedule};
use crate::publishers::{Published, Publisher, Span, Work, publish_all};
use crate::run::{INTERRUPTED, Target};
use crate::scenario::{Behaviour, Load, Scenario};
use crate::subscribers::{Options, Readout, Shared, Subscriber, read_all};
use crate::ws::READ_BUFFER_BYTES;

/// Intervals between the readers and the main thread; it takes them as they come.
const INTERVALS_MAX: usize = 64;

/// Connections that are set up at a time: enough to hide a round trip, too few to overflow a server's backlog.
const SETTING_UP_MAX: usize = 16;

/// Fewer than this for a thread are not worth it.
const SET_UP_PER_THREAD: usize = 32;

/// Everything connected, nothing running.
pub(crate) struct Fleet {
    publishers: Vec<Publisher>,
    /// In turns at the servers, the first one first.
    subscribers: Vec<Subscriber>,
    /// What subscribers subscribe to.
    pub channel: String,
    /// Of all processes.
    publishers_of_all: usize,
}

/// The instants of a run.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    /// First to last message.
    pub span: Span,
    /// Measured.
    pub windows: Vec<Window>,
    /// When each phase begins, its warm-up included, and its rate factor.
    phases: Vec<(u64, f64)>,
    /// When intervals of the time series end.
    pub boundaries: Vec<u64>,
}

impl Times {
    /// Warm-up, window, and again for each phase.
    pub(crate) fn new(scenario: &Scenario, start_ns: u64) -> Self {
        let mut from_ns = start_ns;
        let (mut windows, mut phases) = (Vec::new(), Vec::new());
        for part in scenario.parts() {
            phases.push((from_ns, part.rate_factor));
            let window = Window {
                from_ns: from_ns + nanos(part.warmup),
                to_ns: from_ns + nanos(part.warmup + part.duration),
            };
            from_ns = window.to_ns;
            windows.push(window);
        }
        let boundaries = boundaries(&windows, nanos(scenario.interval_s));
        Self { span: Span { start_ns, end_ns: from_ns }, windows, phases, boundaries }
    }

    /// When the phase begins, its warm-up included, and when it ends.
    pub(crate) fn phase(&self, index: usize) -> (u64, u64) {
        (self.phases[index].0, self.windows[index].to_ns)
    }

    /// When messages are due.
    pub(crate) fn schedule(&self, scenario: &Scenario) -> Schedule {
        let per_s = match scenario.load {
            Load::Scheduled { per_s } | Load::Closed { per_s } => per_s,
            Load::Saturating { .. } | Load::Silent => return Schedule::new(Vec::new()),
        };
        let pacers = self.phases.iter().zip(&self.windows).map(|(&(from_ns, factor), window)| {
            let per_s = scale(per_s, factor);
            let pacer = Pacer::new(from_ns, window.to_ns, per_s);
            match scenario.burst_ms {
                Some(every_ms) => pacer.in_bursts(every_ms.get().saturating_mul(1_000_000)),
                None => pacer,
            }
        });
        Schedule::new(pacers.collect())
    }
}

/// Publishers are numbered with 32 bits; more sockets than that do not exist.
fn count_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A rate times a factor, at least 1.
fn scale(per_s: std::num::NonZeroU64, factor: f64) -> std::num::NonZeroU64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, rounded; a float that is too large becomes the largest integer"
    )]
    let scaled = (per_s.get() as f64 * factor).round() as u64;
    scaled.try_into().unwrap_or(std::num::NonZeroU64::MIN)
}

impl Fleet {
    /// Connects everybody who is there from the beginning. `scenario` is the share of this process, `whole` all of it.
    pub(crate) fn connect(
        scenario: &Scenario,
        whole: &Scenario,
        target: &Target,
        interrupted: &AtomicBool,
    ) -> Result<Self, String> {
        // Channels of this run only: another run against the same server is not in its way.
        let run = target.run_id.clone().unwrap_or_else(|| format!("{:08x}", fastrand::u32(..)));
        let prefix = format!("loadtest.{run}.{}", scenario.name);
        let endpoint = &target.endpoint;
        let Scenario { samples_per_message, payload_bytes, .. } = *scenario;
        let dialect = target.dialect;
        let first = count_of(target.share.range(whole.publishers).start);
        let publishers = open_many(scenario.publishers, interrupted, |index, buffer| {
            let number = first.saturating_add(count_of(index));
            let name = format!("{prefix}.{number}");
            Publisher::open(endpoint, dialect, (number, &name), samples_per_message, payload_bytes, buffer)
                .map_err(|why| format!("publisher {} of {}: {why}", index + 1, scenario.publishers))
        })?;
        let channel = match whole.publishers {
            1 => format!("{prefix}.0"),
            _ => format!("{prefix}.*"),
        };
        let members: Vec<Options> = scenario
            .groups
            .iter()
            .filter(|group| group.behaviour == Behaviour::Healthy)
            .flat_map(|group| {
                let mut options = Options::of(group, dialect, count_of(whole.publishers));
                options.comes_back |= !target.others.is_empty();
                std::iter::repeat_n(options, group.count)
            })
            .collect();
        let servers = target.servers();
        let subscribers = open_many(members.len(), interrupted, |index, buffer| {
            Subscriber::open(&servers[index % servers.len()], &channel, &members[index], buffer)
                .map_err(|why| format!("subscriber {} of {}: {why}", index + 1, members.len()))
        })?;
        Ok(Self { publishers, subscribers, channel, publishers_of_all: whole.publishers })
    }

    /// Starts the threads. The first message goes out at `start_ns`.
    pub(crate) fn start(
        self,
        scenario: &Scenario,
        target: &Target,
        clock: Clock,
        start_ns: u64,
    ) -> Result<Running, String> {
        let Self { publishers, mut subscribers, channel, publishers_of_all } = self;
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Shared {
            clock,
            heads: OnceLock::new(),
            abort: AtomicBool::new(false),
            counters: Arc::clone(&counters),
        });
        let times = Times::new(scenario, start_ns);
        let (servers, all) = (target.servers(), subscribers.len());
        let (sender, intervals) = sync_channel(INTERVALS_MAX);
        let threads = target.reader_threads.clamp(1, all.max(1));
        let progress: Arc<Vec<AtomicU64>> = Arc::new((0..threads).map(|_| AtomicU64::new(0)).collect());
        let paced = scenario.load.is_closed();
        let mut readers = Vec::with_capacity(threads);
        for thread in 0..threads {
            let share = subscribers.len().div_ceil(threads - thread);
            let first = all - subscribers.len();
            let mine: Vec<Subscriber> = subscribers.drain(..share).collect();
            let places = (first..first + share).map(|index| index % servers.len()).collect();
            let back = Comeback::new(Arc::clone(&servers), places);
            let (shared, progress) = (Arc::clone(&shared), Arc::clone(&progress));
            let recorder = Recorder::new(
                &times.windows,
                times.boundaries.clone(),
                clock.now_ns(),
                sender.clone(),
                Arc::clone(&counters),
            );
            let recorder = if paced { recorder.sparse() } else { recorder };
            readers.push(spawn(format!("reader-{thread}"), move || {
                read_all(mine, &shared, recorder, (&progress[thread], paced), back)
            })?);
        }
        let publisher = {
            let (shared, progress, times) = (Arc::clone(&shared), Arc::clone(&progress), times.clone());
            let Scenario { load, payload_bytes, .. } = *scenario;
            let schedule = times.schedule(scenario);
            let comes_back = !target.others.is_empty() || scenario.groups.iter().any(|it| it.comes_back);
            let goes_on = comes_back && target.dialect == Dialect::Tidewire;
            let servers = goes_on.then(|| Arc::clone(&servers));
            let work = Work { load, payload_bytes, schedule, span: times.span, servers };
            spawn("publisher".to_owned(), move || {
                publish_all(publishers, work, &times.windows, &shared, &progress)
            })?
        };
        let publishers = count_of(publishers_of_all);
        let company = Other::all(scenario, &times, target, publishers);
        let others = if company.is_empty() {
            None
        } else {
            let shared = Arc::clone(&shared);
            let way = Way { servers, channel: channel.clone() };
            let recorder = |it: &Other| {
                (
                    it.label(),
                    Recorder::of_ages(
                        it.label(),
                        &times.windows,
                        times.boundaries.clone(),
                        clock.now_ns(),
                        sender.clone(),
                    ),
                )
            };
            let recorders = company.iter().map(recorder).collect();
            Some(spawn("others".to_owned(), move || others::act(company, &way, &shared, recorders))?)
        };
        let options =
            scenario.groups.first().map(|it| Options::of(it, target.dialect, publishers)).unwrap_or_default();
        let visitors = match scenario.churn_per_s {
            Some(per_s) => {
                let (stop, stopped) = sync_channel(0);
                let (endpoint, time) = (target.endpoint.clone(), (times.span.start_ns, times.span.end_ns));
                let options = Options { dialect: target.dialect, publishers, joins_late: true, ..options };
                let visitors = spawn("churn".to_owned(), move || {
                    churn::visit(&endpoint, &channel, &options, clock, time, per_s, &stopped)
                })?;
                Some((stop, visitors))
            }
            None => None,
        };
        Ok(Running { shared, times, intervals, readers, publisher, others, visitors })
    }
}

/// Opens connections on a few threads: in order, or the first reason why not.
pub(crate) fn open_many<T: Send>(
    count: usize,
    interrupted: &AtomicBool,
    open: impl Fn(usize, &mut [u8]) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    let threads = count.div_ceil(SET_UP_PER_THREAD).clamp(1, SETTING_UP_MAX);
    let failed = AtomicBool::new(false);
    let open_some = |indices: std::ops::Range<usize>| {
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let mut opened = Vec::with_capacity(indices.len());
        for index in indices {
            if interrupted.load(Ordering::Relaxed) {
                return Err(INTERRUPTED.to_owned());
            }
            if failed.load(Ordering::Relaxed) {
                break;
            }
            opened.push(open(index, &mut buffer).inspect_err(|_| failed.store(true, Ordering::Relaxed))?);
        }
        Ok(opened)
    };
    thread::scope(|scope| {
        let open_some = &open_some;
        let parts: Vec<_> = (0..threads)
            .map(|thread| (count * thread / threads)..(count * (thread + 1) / threads))
            .map(|indices| scope.spawn(move || open_some(indices)))
            .collect();
        let parts: Vec<Result<Vec<T>, String>> =
            parts.into_iter().map(|it| it.join().unwrap_or_else(|_| Err(PANICKED.to_owned()))).collect();
        let mut all = Vec::with_capacity(count);
        for part in parts {
            all.extend(part?);
        }
        Ok(all)
    })
}

/// A defect of this program.
pub(crate) const PANICKED: &str = "a thread of the generator panicked";

/// Starts a thread with a name.
pub(crate) fn spawn<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, String> {
    thread::Builder::new().name(name).spawn(work).map_err(|error| format!("cannot start a thread: {error}"))
}

/// Everything runs.
pub(crate) struct Running {
    /// Between the threads.
    pub shared: Arc<Shared>,
    /// The plan.
    pub times: Times,
    /// From the readers.
    pub intervals: Receiver<Interval>,
    /// Healthy subscribers.
    pub readers: Vec<JoinHandle<std::io::Result<Readout>>>,
    /// All of them.
    pub publisher: JoinHandle<std::io::Result<Published>>,
    /// Subscribers that are not healthy.
    pub others: Option<JoinHandle<std::io::Result<Others>>>,
    /// Dropping the sender sends them home.
    pub visitors: Option<(SyncSender<()>, JoinHandle<Churned>)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::named;
    use std::num::NonZeroU64;
    use std::time::Duration;

    #[test]
    fn windows_follow_one_another_with_a_warm_up_each() {
        let mut scenario = named("slow_reader").unwrap();
        scenario.warmup_s = Duration::from_nanos(10);
        scenario.duration_s = Duration::from_nanos(100);
        let window = |from_ns, to_ns| Window { from_ns, to_ns };
        let times = Times::new(&scenario, 1_000);
        assert_eq!(times.windows, [window(1_010, 1_110), window(1_120, 1_220)]);
        assert_eq!([times.phase(0), times.phase(1)], [(1_000, 1_110), (1_110, 1_220)]);
        assert_eq!((times.span.start_ns, times.span.end_ns), (1_000, 1_220));
    }

    #[test]
    fn the_rate_follows_the_phases() {
        let scenario = named("overload").unwrap();
        let mut schedule = Times::new(&scenario, 0).schedule(&scenario);
        let counts: Vec<usize> = [6u64, 11, 16]
            .map(|until_s| std::iter::from_fn(|| schedule.pop_due(until_s * 1_000_000_000 - 1)).count())
            .to_vec();
        assert_eq!(counts, [6 * 18_750, 5 * 75_000, 5 * 18_750]);
        assert_eq!(scale(NonZeroU64::MIN, 0.001), NonZeroU64::MIN);
    }

    #[test]
    fn many_are_opened_in_order_or_not_at_all() {
        let interrupted = AtomicBool::new(false);
        let all = open_many(1_000, &interrupted, |index, _| Ok(index)).unwrap();
        assert!(all.into_iter().eq(0..1_000));
        let fail = |index: usize, _: &mut [u8]| if index == 700 { Err("no".to_owned()) } else { Ok(index) };
        assert_eq!(open_many(1_000, &interrupted, fail).unwrap_err(), "no");
        interrupted.store(true, Ordering::Relaxed);
        assert_eq!(open_many(1, &interrupted, |index, _| Ok(index)).unwrap_err(), INTERRUPTED);
    }
}
