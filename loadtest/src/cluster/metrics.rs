//! Counters of servers and brokers, read at the edges of a measurement: the servers' `/metrics`, Redis' `INFO commandstats`, NATS'
//! `/varz`. A counter that cannot be read is missing and never 0.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::pages;
use crate::ws::Endpoint;

use super::broker::Broker;

/// How long a broker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Largest answer of Redis that is read: it has some kilobytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Commands of Redis that bring it a message.
const BRINGING: [&str; 3] = ["publish", "spublish", "xadd"];

/// The value of a server's counter, over all its labels.
pub(crate) fn counter(endpoint: &Endpoint, name: &str) -> Option<u64> {
    let response = pages::fetch(endpoint, "/metrics").ok()?;
    sum(std::str::from_utf8(pages::body(&response)?).ok()?, name)
}

fn sum(page: &str, name: &str) -> Option<u64> {
    let values = page.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<u64>().ok())?
    });
    values.reduce(|sum, value| sum.saturating_add(value))
}

/// Messages that came to the broker since its start, as it counts itself: of servers, of all kinds.
pub(crate) fn brought(broker: &Broker) -> Option<u64> {
    match broker.monitor {
        Some(monitor) => {
            let endpoint = Endpoint::parse(&format!("ws://{monitor}/")).ok()?;
            let response = pages::fetch(&endpoint, "/varz").ok()?;
            let page: serde_json::Value = serde_json::from_slice(pages::body(&response)?).ok()?;
            page.get("in_msgs")?.as_u64()
        }
        None => Some(calls(&ask_redis(broker.address).ok()?)),
    }
}

fn ask_redis(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"INFO commandstats\r\n")?;
    let mut reader = BufReader::new(stream.take(ANSWER_BYTES_MAX));
    let mut head = String::new();
    reader.read_line(&mut head)?;
    // A bulk string: its length, then so many bytes.
    let length = head.trim_end().strip_prefix('$').and_then(|it| it.parse::<u64>().ok());
    let length = length.ok_or_else(|| io::Error::other("no bulk string"))?;
    let mut text = String::new();
    reader.take(length).read_to_string(&mut text)?;
    Ok(text)
}

/// A line each: `cmdstat_publish:calls=12,usec=...`. Redis leaves out commands that were never called.
fn calls(text: &str) -> u64 {
    let of_line = |line: &str| {
        let (command, figures) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let calls = figures.split(',').find_map(|it| it.strip_prefix("calls="))?;
        BRINGING.contains(&command).then(|| calls.trim().parse::<u64>().ok())?
    };
    text.lines().filter_map(of_line).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_the_sum_of_its_series() {
        let page = "# TYPE a counter\na{x=\"1\"} 3\na{x=\"2\"} 4\nab 9\nb 5\n";
        assert_eq!((sum(page, "a"), sum(page, "b"), sum(page, "c")), (Some(7), Some(5), None));
    }

    #[test]
    fn redis_counts_by_command() {
        let text = "# Commandstats\r\ncmdstat_publish:calls=12,usec=30\r\ncmdstat_xadd:calls=3,usec=1\r\n\
                    cmdstat_get:calls=99,usec=1\r\ncmdstat_xadd\r\n";
        assert_eq!((calls(text), calls("")), (15, 0));
    }
}
