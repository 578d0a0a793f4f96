//! The server as a publisher: its own metrics on `$sys.*`, and the telemetry of its host. Publishes like any other worker's
//! client, through the router; runs beside the acceptor, where reading files delays no connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use tokio::time::MissedTickBehavior;

use crate::clock::{Clock, Now};
use crate::host::HostTelemetry;
use crate::http;
use crate::hub::directory::ChannelInfo;
use crate::hub::router::{ForwardedPublish, Router};
use crate::reading::Reading;
use crate::system::SystemTelemetry;
use crate::wire::decode::scan_publish;
use crate::wire::proto::{Block, Publish, Sample};
use crate::worker::Shared;

/// Time between two readings of the server's own metrics.
const SYSTEM_INTERVAL: Duration = Duration::from_secs(1);

/// Publishes until it is dropped.
pub async fn run(shared: &Arc<Shared>) {
    tokio::join!(publish_system(shared), publish_host(shared));
}

async fn publish_system(shared: &Arc<Shared>) {
    let mut channels = Channels::new(&shared.router);
    let mut telemetry = SystemTelemetry::new(Instant::now());
    let mut interval = tokio::time::interval_at((Instant::now() + SYSTEM_INTERVAL).into(), SYSTEM_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let (metrics, gauges) = http::collect(shared).await;
        channels.publish(telemetry.read(&metrics, &gauges, Instant::now())).await;
    }
}

async fn publish_host(shared: &Shared) {
    if !shared.config.host_telemetry {
        return;
    }
    let mut telemetry = match HostTelemetry::open() {
        Ok(telemetry) => telemetry,
        Err(error) => {
            tracing::warn!(%error, "the host's telemetry is not published");
            return;
        }
    };
    let mut channels = Channels::new(&shared.router);
    let mut interval = tokio::time::interval(Duration::from_secs_f64(1.0 / shared.config.host_telemetry_hz));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let at = interval.tick().await;
        channels.publish(telemetry.read(at.into())).await;
    }
}

/// The channels that were advertised so far.
struct Channels<'a> {
    router: &'a Arc<Router>,
    advertised: HashMap<String, Arc<ChannelInfo>>,
}

impl<'a> Channels<'a> {
    fn new(router: &'a Arc<Router>) -> Self {
        Self { router, advertised: HashMap::new() }
    }

    async fn publish(&mut self, readings: Vec<Reading>) {
        let now = Clock::new().now();
        for Reading { channel, value } in readings {
            if !self.advertised.contains_key(&channel) {
                let Ok(info) = self.router.advertise(&channel).await else {
                    // Clients have all the channels that the server takes; theirs come first.
                    continue;
                };
                self.advertised.insert(channel.clone(), info);
            }
            let sample = Sample { source_delta_ns: 0, value: Some(value) };
            if let Some(publish) = self.advertised.get(&channel).and_then(|info| message(info, sample, now)) {
                self.router.publish(publish).await;
            }
        }
    }
}

/// A sample as a publish on its way to the channel's home.
fn message(info: &Arc<ChannelInfo>, sample: Sample, now: Now) -> Option<Box<ForwardedPublish>> {
    let block = Block { source_ns: now.wall_ns, received_ns: 0, samples: vec![sample] };
    let message = Publish { channel: info.id.0, block: Some(block), ack: 0 }.encode_to_vec();
    let mut spans = Vec::new();
    let scanned = scan_publish(&message, 1, &mut spans).ok()?;
    Some(Box::new(ForwardedPublish {
        info: Arc::clone(info),
        content: bytes::Bytes::copy_from_slice(scanned.block),
        spans: spans.into(),
        source_ns: now.wall_ns,
        received: now,
        ack: None,
        permit: None,
    }))
}
