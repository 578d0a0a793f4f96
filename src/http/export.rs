//! Metrics and lists of all workers together, as text. The workers copy, other threads add up and write. Never touches a sample.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use hyper::StatusCode;
use serde::Serialize;
use tokio::sync::oneshot;

use super::reply::{Reply, json, reply};
use crate::history::store::Health;
use crate::hub::overload::STEPS;
use crate::hub::router::{ChannelRow, ConnectionRow, Listing, ToWorker, WorkerReport};
use crate::metrics::WorkerMetrics;
use crate::metrics::exposition::Gauges;
use crate::worker::{EXPORTS_MAX, Shared};

/// The metrics of all workers together, and the gauges. The workers copy, another thread adds up: neither takes a worker long.
pub async fn collect(shared: &Arc<Shared>) -> (Box<WorkerMetrics>, Gauges) {
    // It is never closed.
    let _turn = shared.exports.acquire().await;
    let buffer = || {
        let mut buffers = shared.metrics_buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.pop().unwrap_or_default()
    };
    let reports = ask(shared, |reply| ToWorker::Report { buffer: buffer(), reply }).await;
    let add = {
        let shared = Arc::clone(shared);
        move || add_up(&shared, reports)
    };
    // It fails only while the runtime ends.
    tokio::task::spawn_blocking(add).await.unwrap_or_default()
}

fn add_up(shared: &Shared, reports: Vec<WorkerReport>) -> (Box<WorkerMetrics>, Gauges) {
    let mut metrics = Box::new(WorkerMetrics::new());
    let mut gauges = Gauges {
        connections: shared.connections.load(Ordering::Relaxed) as u64,
        channels: shared.router.directory(|directory| directory.len()) as u64,
        workers: shared.router.workers() as u64,
        uptime: shared.started.elapsed(),
        ready: shared.readiness.is_serving(),
        flush_window: shared.config.batch.window,
        broker_delivers: shared.readiness.has_proof(Instant::now()),
        ..Gauges::default()
    };
    if let Some((stats, health)) = shared.router.durable().map(|durable| durable.stats()) {
        gauges.history_store_disk_bytes = stats.disk_bytes;
        gauges.history_store_waiting_bytes = stats.in_flight_bytes as u64;
        gauges.history_store_degraded = health != Health::Healthy;
    }
    for WorkerReport {
        metrics: worker,
        subscriptions,
        outbox_bytes,
        outbox_frames,
        memory_bytes,
        history,
        widening,
    } in reports
    {
        metrics.merge(&worker);
        gauges.subscriptions += subscriptions as u64;
        gauges.outbox_bytes += outbox_bytes as u64;
        gauges.outbox_frames += outbox_frames as u64;
        gauges.outbox_memory_bytes += memory_bytes as u64;
        gauges.history_bytes += history.bytes as u64;
        gauges.history_frames += history.frames as u64;
        gauges.history_channels += history.streams as u64;
        let window = (shared.config.batch.window * widening / STEPS).min(shared.config.batch.window_max);
        gauges.flush_window = gauges.flush_window.max(window);
        let mut buffers = shared.metrics_buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < EXPORTS_MAX * shared.router.workers() {
            buffers.push(worker);
        }
    }
    metrics.counters.sockets_refused.add(&shared.door.refused());
    metrics.counters.merge(&shared.cluster_counters.lock().unwrap_or_else(PoisonError::into_inner));
    (metrics, gauges)
}

/// Renders on another thread: it walks every histogram, and the worker has connections to serve.
pub(super) async fn render(
    shared: &Arc<Shared>,
    content_type: &'static str,
    render: impl FnOnce(&Shared, &WorkerMetrics, &Gauges) -> Vec<u8> + Send + 'static,
) -> Reply {
    let (metrics, gauges) = collect(shared).await;
    let shared = Arc::clone(shared);
    let body = tokio::task::spawn_blocking(move || render(&shared, &metrics, &gauges)).await;
    reply(StatusCode::OK, content_type, body.unwrap_or_default())
}

#[derive(Serialize)]
pub(super) struct Channels {
    pub(super) channels: Vec<ChannelRow>,
}

#[derive(Serialize)]
pub(super) struct Connections {
    pub(super) connections: Vec<ConnectionRow>,
}

/// Lists what all workers have; sorts and writes it on another thread.
pub(super) async fn list(
    shared: &Arc<Shared>,
    write: impl FnOnce(Listing) -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> Reply {
    let _turn = shared.exports.acquire().await;
    let listings = ask(shared, ToWorker::List).await;
    let write = move || {
        let mut all = Listing::default();
        for listing in listings {
            all.connections.extend(listing.connections);
            all.channels.extend(listing.channels);
        }
        // Rows of numbers and strings always serialize.
        write(all).unwrap_or_default()
    };
    json(StatusCode::OK, tokio::task::spawn_blocking(write).await.unwrap_or_default())
}

/// Asks every worker, then waits for all: they answer side by side. One that has ended says nothing.
async fn ask<T>(shared: &Shared, question: impl Fn(oneshot::Sender<T>) -> ToWorker) -> Vec<T> {
    let waiting: Vec<_> = (0..shared.router.workers())
        .map(|worker| {
            let (reply, answer) = oneshot::channel();
            shared.router.send(worker, question(reply));
            answer
        })
        .collect();
    let mut answers = Vec::with_capacity(waiting.len());
    for answer in waiting {
        answers.extend(answer.await.ok());
    }
    answers
}
